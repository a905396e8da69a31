// 2-bit weights: a line is 4 steps, in bits 0-1, 2-3, 4-5, 6-7 of its bytes.
#include "blocks_avx2.h"

namespace qxc {
namespace {

QXC_INLINE void codes(const uint8_t* lines, __m256i* values) {
#pragma GCC unroll 2
  for (int line = 0; line < 2; ++line) {
    const __m256i z = load_half(lines + line * kLineBytes);
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) values[4 * line + q] = _mm256_and_si256(_mm256_srli_epi32(z, 2 * q), mask8(0x03));
  }
}

}  // namespace

MatMulTiles matmul_w2_16x32_avx2(Code code, Activation activation) { return matmul_of<2, codes>(code, activation); }

}  // namespace qxc
