// 8-bit weights: a line is a step. Bytes are signed: the code less 128.
#include "blocks_avx2.h"

namespace qxc {
namespace {

QXC_INLINE void codes(const uint8_t* lines, __m256i* values) {
#pragma GCC unroll 8
  for (int line = 0; line < 8; ++line) {
    values[line] = _mm256_xor_si256(load_half(lines + line * kLineBytes), mask8(0x80));
  }
}

}  // namespace

MatMulTiles matmul_w8_16x32_avx2(Code code, Activation activation) { return matmul_of<8, codes>(code, activation); }

}  // namespace qxc
