// The codes of a block, one in a byte: eight vectors, one a step, out of each width's lines. They may stay shifted
// left: see matmul.h.
#pragma once

#include "avx512/matmul.h"

namespace qxc {
namespace {

QXC_INLINE __m512i mask8(int mask) { return _mm512_set1_epi8(static_cast<char>(mask)); }

QXC_INLINE __m512i select(__m512i mask, __m512i yes, __m512i no) {
  return _mm512_ternarylogic_epi32(mask, yes, no, 0xCA);
}

template <int bits>
void load_codes(const uint8_t* lines, __m512i* values);

// 2-bit weights: a line is 4 steps, in bits 0-1, 2-3, 4-5, 6-7 of its bytes.
template <>
QXC_INLINE void load_codes<2>(const uint8_t* lines, __m512i* values) {
#pragma GCC unroll 2
  for (int line = 0; line < 2; ++line) {
    const __m512i z = load_line(lines + line * kLineBytes);
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) values[4 * line + q] = _mm512_and_si512(z, mask8(0x03 << 2 * q));
  }
}

// 3-bit weights: the low six bits of line l are steps 2l and 2l + 1; the three lines' top bits are steps 6 and 7.
// Steps 2p and 2p + 1 in bits 0-2 and 3-5 of every byte of pairs[p]; bits 6-7 are anything.
QXC_INLINE void load_pairs(const uint8_t* lines, __m512i* pairs) {
  const __m512i z0 = load_line(lines), z1 = load_line(lines + kLineBytes), z2 = load_line(lines + 2 * kLineBytes);
  const __m512i upper = select(mask8(0x0C), _mm512_srli_epi32(z1, 4), _mm512_srli_epi32(z2, 2));
  pairs[0] = z0;
  pairs[1] = z1;
  pairs[2] = z2;
  pairs[3] = select(mask8(0x03), _mm512_srli_epi32(z0, 6), upper);
}

template <>
QXC_INLINE void load_codes<3>(const uint8_t* lines, __m512i* values) {
  __m512i pairs[4];
  load_pairs(lines, pairs);
#pragma GCC unroll 4
  for (int p = 0; p < 4; ++p) {
    values[2 * p] = _mm512_and_si512(pairs[p], mask8(0x07));
    values[2 * p + 1] = _mm512_and_si512(pairs[p], mask8(0x38));
  }
}

// 4-bit weights: line l is steps 2l and 2l + 1, in the low and high halves of its bytes.
template <>
QXC_INLINE void load_codes<4>(const uint8_t* lines, __m512i* values) {
#pragma GCC unroll 4
  for (int line = 0; line < 4; ++line) {
    const __m512i z = load_line(lines + line * kLineBytes);
    values[2 * line] = _mm512_and_si512(z, mask8(0x0F));
    values[2 * line + 1] = _mm512_and_si512(z, mask8(0xF0));
  }
}

// 5-bit weights: lines 0-3 are the low four bits, as of 4-bit weights; bit q of line 4 is the fifth bit of step q.
template <>
QXC_INLINE void load_codes<5>(const uint8_t* lines, __m512i* values) {
  const __m512i fifth = load_line(lines + 4 * kLineBytes);
#pragma GCC unroll 4
  for (int line = 0; line < 4; ++line) {
    const __m512i z = load_line(lines + line * kLineBytes);
    const unsigned q = static_cast<unsigned>(2 * line);
    const __m512i even = q < 4 ? _mm512_slli_epi32(fifth, 4 - q) : _mm512_srli_epi32(fifth, q - 4);
    const __m512i odd = q < 3 ? _mm512_slli_epi32(fifth, 3 - q) : _mm512_srli_epi32(fifth, q - 3);
    values[2 * line] = select(mask8(0x0F), z, _mm512_and_si512(even, mask8(0x10)));
    values[2 * line + 1] = select(mask8(0x0F), _mm512_srli_epi32(z, 4), _mm512_and_si512(odd, mask8(0x10)));
  }
}

// 6-bit weights: lines 0-3 are the low four bits, as of 4-bit weights; lines 4-5 the upper two, as of 2-bit weights.
template <>
QXC_INLINE void load_codes<6>(const uint8_t* lines, __m512i* values) {
  const __m512i upper[2] = {load_line(lines + 4 * kLineBytes), load_line(lines + 5 * kLineBytes)};
#pragma GCC unroll 4
  for (int line = 0; line < 4; ++line) {
    const __m512i z = load_line(lines + line * kLineBytes);
    const __m512i u = upper[line / 2];  // bits 0-3 or 4-7 of its bytes
    const __m512i even = line % 2 ? u : _mm512_slli_epi32(u, 4);
    const __m512i odd = line % 2 ? _mm512_srli_epi32(u, 2) : _mm512_slli_epi32(u, 2);
    values[2 * line] = select(mask8(0x0F), z, _mm512_and_si512(even, mask8(0x30)));
    values[2 * line + 1] = select(mask8(0x0F), _mm512_srli_epi32(z, 4), _mm512_and_si512(odd, mask8(0x30)));
  }
}

// 8-bit weights: a line is a step.
template <>
QXC_INLINE void load_codes<8>(const uint8_t* lines, __m512i* values) {
#pragma GCC unroll 8
  for (int line = 0; line < 8; ++line) values[line] = load_line(lines + line * kLineBytes);
}

}  // namespace
}  // namespace qxc
