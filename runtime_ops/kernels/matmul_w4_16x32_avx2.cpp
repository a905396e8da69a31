// 4-bit weights: line l is steps 2l and 2l + 1, in the low and high halves of its bytes.
#include "blocks_avx2.h"

namespace qxc {
namespace {

QXC_INLINE void codes(const uint8_t* lines, __m256i* values) {
#pragma GCC unroll 4
  for (int line = 0; line < 4; ++line) {
    const __m256i z = load_half(lines + line * kLineBytes);
    values[2 * line] = _mm256_and_si256(z, mask8(0x0F));
    values[2 * line + 1] = _mm256_and_si256(_mm256_srli_epi32(z, 4), mask8(0x0F));
  }
}

}  // namespace

MatMulTiles matmul_w4_16x32_avx2(Code code, Activation activation) { return matmul_of<4, codes>(code, activation); }

}  // namespace qxc
