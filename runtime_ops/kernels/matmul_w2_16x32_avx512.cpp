// 2-bit weights: a line is 4 steps, in bits 0-1, 2-3, 4-5, 6-7 of its bytes.
#include "tables_avx512.h"

namespace qxc {
namespace {

template <Code code>
struct Integer2 {
  static constexpr Code kCode = code;
  static constexpr int kBits = 2;
  static constexpr int kClasses = classes_of<code, kBits>();
  static constexpr bool kMuchWork = true;

  Integer2(const PackedWeight&, int64_t) {}

  QXC_INLINE void load(const uint8_t* lines, __m512i* values) const {
#pragma GCC unroll 2
    for (int line = 0; line < kBits; ++line) {
      const __m512i z = load_line(lines + line * kLineBytes);
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) values[4 * line + q] = _mm512_and_si512(z, mask8(0x03 << 2 * q));
    }
  }
};

struct PerTensor2 {
  static constexpr Code kCode = Code::kLut;
  static constexpr int kBits = 2;
  static constexpr int kClasses = 1;
  static constexpr bool kMuchWork = true;

  // permutes read the low 6 bits of an index: a table for each place of a code in them
  __m512i at0, at2, at4;

  PerTensor2(const PackedWeight& weight, int64_t) {
    static constexpr Bytes64 k0 = make_bytes([](int i) { return i & 3; });
    static constexpr Bytes64 k2 = make_bytes([](int i) { return i >> 2 & 3; });
    static constexpr Bytes64 k4 = make_bytes([](int i) { return i >> 4; });
    const __m512i book = load_entries<4>(weight.codebook);
    at0 = _mm512_permutexvar_epi8(load_bytes(k0), book);
    at2 = _mm512_permutexvar_epi8(load_bytes(k2), book);
    at4 = _mm512_permutexvar_epi8(load_bytes(k4), book);
  }

  QXC_INLINE void load(const uint8_t* lines, __m512i* values) const {
#pragma GCC unroll 2
    for (int line = 0; line < kBits; ++line) {
      const __m512i z = load_line(lines + line * kLineBytes);
      values[4 * line] = _mm512_permutexvar_epi8(z, at0);
      values[4 * line + 1] = _mm512_permutexvar_epi8(z, at2);
      values[4 * line + 2] = _mm512_permutexvar_epi8(z, at4);
      values[4 * line + 3] = _mm512_permutexvar_epi8(_mm512_srli_epi32(z, 2), at4);
    }
  }
};

struct PerRow2 {
  static constexpr Code kCode = Code::kLut;
  static constexpr int kBits = 2;
  static constexpr int kClasses = 1;
  static constexpr bool kMuchWork = true;

  // an index is a code and its row's number: a table for each place of the code, the row in the other bits
  __m512i table0, table2, table4, row0, row2, row4;

  PerRow2(const PackedWeight& weight, int64_t tile) {
    static constexpr Bytes64 k2 = make_bytes([](int i) { return ((i & 3) | (i >> 4) << 2) << 2 | (i >> 2 & 3); });
    static constexpr Bytes64 k4 = make_bytes([](int i) { return (i & 15) << 2 | i >> 4; });
    static constexpr Bytes64 kRow0 = make_bytes([](int i) { return i / 4 << 2; });
    static constexpr Bytes64 kRow2 = make_bytes([](int i) { return (i / 4 & 3) | (i / 4 >> 2) << 4; });
    static constexpr Bytes64 kRow4 = make_bytes([](int i) { return i / 4; });
    table0 = load_entries<64>(codebook_of(weight, tile, kBits));
    table2 = _mm512_permutexvar_epi8(load_bytes(k2), table0);
    table4 = _mm512_permutexvar_epi8(load_bytes(k4), table0);
    row0 = load_bytes(kRow0);
    row2 = load_bytes(kRow2);
    row4 = load_bytes(kRow4);
  }

  QXC_INLINE void load(const uint8_t* lines, __m512i* values) const {
#pragma GCC unroll 2
    for (int line = 0; line < kBits; ++line) {
      const __m512i z = load_line(lines + line * kLineBytes);
      const __m512i high = _mm512_srli_epi32(z, 2);
      values[4 * line] = _mm512_permutexvar_epi8(select(mask8(0x03), z, row0), table0);
      values[4 * line + 1] = _mm512_permutexvar_epi8(select(mask8(0x0C), z, row2), table2);
      values[4 * line + 2] = _mm512_permutexvar_epi8(select(mask8(0x30), z, row4), table4);
      values[4 * line + 3] = _mm512_permutexvar_epi8(select(mask8(0x30), high, row4), table4);
    }
  }
};

}  // namespace

MatMulFamily matmul_w2_16x32_avx512(Code code) {
  if (code == Code::kLut) return family_of_codebooks<PerTensor2, PerRow2>();
  return code == Code::kInt ? family_of<Integer2<Code::kInt>>() : family_of<Integer2<Code::kUInt>>();
}

}  // namespace qxc
