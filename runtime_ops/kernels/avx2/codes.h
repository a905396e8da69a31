// The codes of half a block, one in a byte: eight vectors, one a step, out of each width's lines. As 8-bit codes are
// multiplied as signed numbers without AVX-VNNI, they come out less 128.
#pragma once

#include "avx2/matmul.h"

namespace qxc {
namespace {

template <int bits>
void load_codes(const uint8_t* lines, __m256i* values);

// 2-bit weights: a line is 4 steps, in bits 0-1, 2-3, 4-5, 6-7 of its bytes.
template <>
QXC_INLINE void load_codes<2>(const uint8_t* lines, __m256i* values) {
#pragma GCC unroll 2
  for (int line = 0; line < 2; ++line) {
    const __m256i z = load_half(lines + line * kLineBytes);
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) values[4 * line + q] = _mm256_and_si256(_mm256_srli_epi32(z, 2 * q), mask8(0x03));
  }
}

// 3-bit weights: the low six bits of line l are steps 2l and 2l + 1; the three lines' top bits are steps 6 and 7.
template <>
QXC_INLINE void load_codes<3>(const uint8_t* lines, __m256i* values) {
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

// 4-bit weights: line l is steps 2l and 2l + 1, in the low and high halves of its bytes.
template <>
QXC_INLINE void load_codes<4>(const uint8_t* lines, __m256i* values) {
#pragma GCC unroll 4
  for (int line = 0; line < 4; ++line) {
    const __m256i z = load_half(lines + line * kLineBytes);
    values[2 * line] = _mm256_and_si256(z, mask8(0x0F));
    values[2 * line + 1] = _mm256_and_si256(_mm256_srli_epi32(z, 4), mask8(0x0F));
  }
}

// 5-bit weights: lines 0-3 are the low four bits, as of 4-bit weights; bit q of line 4 is the fifth bit of step q.
template <>
QXC_INLINE void load_codes<5>(const uint8_t* lines, __m256i* values) {
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

// 6-bit weights: lines 0-3 are the low four bits, as of 4-bit weights; lines 4-5 the upper two, as of 2-bit weights.
template <>
QXC_INLINE void load_codes<6>(const uint8_t* lines, __m256i* values) {
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

// 8-bit weights: a line is a step. Bytes are signed: the code less 128.
template <>
QXC_INLINE void load_codes<8>(const uint8_t* lines, __m256i* values) {
#pragma GCC unroll 8
  for (int line = 0; line < 8; ++line) {
    values[line] = _mm256_xor_si256(load_half(lines + line * kLineBytes), mask8(kVnni ? 0 : 0x80));
  }
}

}  // namespace
}  // namespace qxc
