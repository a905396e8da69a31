// 5-bit weights: lines 0-3 are the low four bits, as of 4-bit weights; bit q of line 4 is the fifth bit of step q.
#include "blocks_avx2.h"

namespace qxc {
namespace {

QXC_INLINE void codes(const uint8_t* lines, __m256i* values) {
  const __m256i fifth = load_half(lines + 4 * kLineBytes);
#pragma GCC unroll 4
  for (int line = 0; line < 4; ++line) {
    const int q = 2 * line;
    const __m256i z = load_half(lines + line * kLineBytes);
    const __m256i even = q < 4 ? _mm256_slli_epi32(fifth, 4 - q) : _mm256_srli_epi32(fifth, q - 4);
    const __m256i odd = q < 3 ? _mm256_slli_epi32(fifth, 3 - q) : _mm256_srli_epi32(fifth, q - 3);
    const __m256i low_even = _mm256_and_si256(z, mask8(0x0F));
    const __m256i low_odd = _mm256_and_si256(_mm256_srli_epi32(z, 4), mask8(0x0F));
    values[q] = _mm256_or_si256(low_even, _mm256_and_si256(even, mask8(0x10)));
    values[q + 1] = _mm256_or_si256(low_odd, _mm256_and_si256(odd, mask8(0x10)));
  }
}

}  // namespace

MatMulTiles matmul_w5_16x32_avx2(Code code, Activation activation) { return matmul_of<5, codes>(code, activation); }

}  // namespace qxc
