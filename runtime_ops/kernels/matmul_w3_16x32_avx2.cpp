// 3-bit weights: the low six bits of line l are steps 2l and 2l + 1; the three lines' top bits are steps 6 and 7.
#include "blocks_avx2.h"

namespace qxc {
namespace {

QXC_INLINE void codes(const uint8_t* lines, __m256i* values) {
  const __m256i z0 = load_half(lines);
  const __m256i z1 = load_half(lines + kLineBytes);
  const __m256i z2 = load_half(lines + 2 * kLineBytes);
  const __m256i top0 = _mm256_and_si256(_mm256_srli_epi32(z0, 6), mask8(0x03));
  const __m256i top1 = _mm256_and_si256(_mm256_srli_epi32(z1, 4), mask8(0x0C));
  const __m256i top2 = _mm256_and_si256(_mm256_srli_epi32(z2, 2), mask8(0x30));
  const __m256i pairs[4] = {z0, z1, z2, _mm256_or_si256(_mm256_or_si256(top0, top1), top2)};
#pragma GCC unroll 4
  for (int p = 0; p < 4; ++p) {
    values[2 * p] = _mm256_and_si256(pairs[p], mask8(0x07));
    values[2 * p + 1] = _mm256_and_si256(_mm256_srli_epi32(pairs[p], 3), mask8(0x07));
  }
}

}  // namespace

MatMulTiles matmul_w3_16x32_avx2(Code code, Activation activation) { return matmul_of<3, codes>(code, activation); }

}  // namespace qxc
