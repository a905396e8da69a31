// 6-bit weights: lines 0-3 are the low four bits, as of 4-bit weights; lines 4-5 the upper two, as of 2-bit weights.
#include "blocks_avx2.h"

namespace qxc {
namespace {

QXC_INLINE void codes(const uint8_t* lines, __m256i* values) {
#pragma GCC unroll 4
  for (int line = 0; line < 4; ++line) {
    const __m256i z = load_half(lines + line * kLineBytes);
    const __m256i upper = load_half(lines + (4 + line / 2) * kLineBytes);  // in bits 0-3 or 4-7 of its bytes
    const __m256i even = line % 2 ? upper : _mm256_slli_epi32(upper, 4);
    const __m256i odd = line % 2 ? _mm256_srli_epi32(upper, 2) : _mm256_slli_epi32(upper, 2);
    const __m256i low_even = _mm256_and_si256(z, mask8(0x0F));
    const __m256i low_odd = _mm256_and_si256(_mm256_srli_epi32(z, 4), mask8(0x0F));
    values[2 * line] = _mm256_or_si256(low_even, _mm256_and_si256(even, mask8(0x30)));
    values[2 * line + 1] = _mm256_or_si256(low_odd, _mm256_and_si256(odd, mask8(0x30)));
  }
}

}  // namespace

MatMulTiles matmul_w6_16x32_avx2(Code code, Activation activation) { return matmul_of<6, codes>(code, activation); }

}  // namespace qxc
