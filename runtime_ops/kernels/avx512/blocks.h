// From codes to the bytes that are multiplied, with AVX-512: integers as they are, codebooks by byte permutes.
#pragma once

#include "avx512/codes.h"

namespace qxc {
namespace {

template <qxc_code code, int bits>
struct Integer {
  static constexpr qxc_code kCode = code;
  static constexpr int kBits = bits;
  static constexpr int kClasses = classes_of<code, bits>();
  static constexpr bool kSlowToDecode = bits == 2;

  Integer(const PackedWeight&, int64_t) {}

  QXC_INLINE void load(const uint8_t* lines, __m512i* values) const { load_codes<bits>(lines, values); }
};

struct alignas(64) Bytes64 {
  uint8_t at[64];
};

template <class Value>
constexpr Bytes64 make_bytes(Value value) {
  Bytes64 bytes{};
  for (int i = 0; i < 64; ++i) bytes.at[i] = static_cast<uint8_t>(value(i));
  return bytes;
}

QXC_INLINE __m512i load_bytes(const Bytes64& bytes) { return _mm512_load_si512(bytes.at); }

// The first `entries` of a codebook, raised by 128 to be unsigned; made anew for every tile, so this has to be quick.
template <int entries>
QXC_INLINE __m512i load_entries(const int8_t* book) {
  constexpr __mmask64 mask = entries == 64 ? ~__mmask64{0} : (__mmask64{1} << entries % 64) - 1;
  return _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, book), _mm512_set1_epi8(-128));
}

// The codebooks of a tile's rows, or of the tensor.
QXC_INLINE const int8_t* codebook_of(const PackedWeight& weight, int64_t tile, int bits) {
  return weight.codebook + (weight.codebook_per_tensor ? 0 : (tile * kTileRows) << bits);
}

template <qxc_code code, int bits>
struct PerTensor {
  static constexpr qxc_code kCode = code;
  static constexpr int kBits = bits;
  static constexpr int kClasses = 1;
  static constexpr bool kSlowToDecode = bits == 2 || code == QXC_FP;

  // permutes read the low 6 bits of an index: a table for each place of a code in them (an array of them would cost
  // gcc 12 some moves)
  __m512i first, second, third;

  PerTensor(const PackedWeight& weight, int64_t) {
    const __m512i book = load_entries<1 << bits>(code == QXC_FP ? kTwiceE2M1 : weight.codebook);
    first = table_at<0>(book);
    if constexpr (bits <= 3) second = table_at<bits>(book);
    if constexpr (bits == 2) third = table_at<2 * bits>(book);
  }

  template <int shift>
  static QXC_INLINE __m512i table_at(__m512i book) {
    static constexpr Bytes64 kEntry = make_bytes([](int i) { return i >> shift & ((1 << bits) - 1); });
    return _mm512_permutexvar_epi8(load_bytes(kEntry), book);
  }

  QXC_INLINE void load(const uint8_t* lines, __m512i* values) const {
    if constexpr (bits == 3) {
      __m512i pairs[4];
      load_pairs(lines, pairs);
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p) {
        values[2 * p] = _mm512_permutexvar_epi8(pairs[p], first);
        values[2 * p + 1] = _mm512_permutexvar_epi8(pairs[p], second);
      }
      return;
    }
#pragma GCC unroll 4
    for (int line = 0; line < bits; ++line) {
      const __m512i z = load_line(lines + line * kLineBytes);
      if constexpr (bits == 2) {
        values[4 * line] = _mm512_permutexvar_epi8(z, first);
        values[4 * line + 1] = _mm512_permutexvar_epi8(z, second);
        values[4 * line + 2] = _mm512_permutexvar_epi8(z, third);
        values[4 * line + 3] = _mm512_permutexvar_epi8(_mm512_srli_epi32(z, 2), third);
      } else {
        values[2 * line] = _mm512_permutexvar_epi8(z, first);
        values[2 * line + 1] = _mm512_permutexvar_epi8(_mm512_srli_epi32(z, 4), first);
      }
    }
  }
};

template <>
struct PerRow<2> {
  static constexpr qxc_code kCode = QXC_LUT;
  static constexpr int kBits = 2;
  static constexpr int kClasses = 1;
  static constexpr bool kSlowToDecode = true;

  // a table for each place of the code in an index of 6 bits, the row in the others
  __m512i table0, table2, table4, row0, row2, row4;

  PerRow(const PackedWeight& weight, int64_t tile) {
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

template <>
struct PerRow<3> {
  static constexpr qxc_code kCode = QXC_LUT;
  static constexpr int kBits = 3;
  static constexpr int kClasses = 1;
  static constexpr bool kSlowToDecode = true;

  // an index has 7 bits: a code where it lies, and its row's number around it
  __m512i even[2], odd[2], even_row, odd_row;

  PerRow(const PackedWeight& weight, int64_t tile) {
    static constexpr Bytes64 kOddLower = make_bytes([](int i) { return (i & 7) << 3 | i >> 3; });
    static constexpr Bytes64 kOddUpper = make_bytes([](int i) { return ((i & 7) + 8) << 3 | i >> 3; });
    static constexpr Bytes64 kEvenRow = make_bytes([](int i) { return i / 4 << 3; });
    static constexpr Bytes64 kOddRow = make_bytes([](int i) { return (i / 4 & 7) | (i / 4 >> 3) << 6; });
    const int8_t* book = codebook_of(weight, tile, kBits);
    even[0] = load_entries<64>(book);
    even[1] = load_entries<64>(book + 64);
    odd[0] = _mm512_permutex2var_epi8(even[0], load_bytes(kOddLower), even[1]);
    odd[1] = _mm512_permutex2var_epi8(even[0], load_bytes(kOddUpper), even[1]);
    even_row = load_bytes(kEvenRow);
    odd_row = load_bytes(kOddRow);
  }

  QXC_INLINE void load(const uint8_t* lines, __m512i* values) const {
    __m512i pairs[4];
    load_pairs(lines, pairs);
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {
      const __m512i even_index = select(mask8(0x07), pairs[p], even_row);
      const __m512i odd_index = select(mask8(0x38), pairs[p], odd_row);
      values[2 * p] = _mm512_permutex2var_epi8(even[0], even_index, even[1]);
      values[2 * p + 1] = _mm512_permutex2var_epi8(odd[0], odd_index, odd[1]);
    }
  }
};

template <>
struct PerRow<4> {
  static constexpr qxc_code kCode = QXC_LUT;
  static constexpr int kBits = 4;
  static constexpr int kClasses = 1;
  static constexpr bool kSlowToDecode = true;

  // an index has 7 bits, a code and the number of a row among eight: two tables, each for half of a line
  __m512i lower[2], upper[2], row;

  PerRow(const PackedWeight& weight, int64_t tile) {
    static constexpr Bytes64 kRow = make_bytes([](int i) { return (i / 4 & 7) << 4; });
    const int8_t* book = codebook_of(weight, tile, kBits);
    lower[0] = load_entries<64>(book);
    lower[1] = load_entries<64>(book + 64);
    upper[0] = load_entries<64>(book + 128);
    upper[1] = load_entries<64>(book + 192);
    row = load_bytes(kRow);
  }

  QXC_INLINE __m512i look_up(__m512i codes) const {
    const __m512i index = select(mask8(0x0F), codes, row);
    // what the first look-up leaves out is still the index
    const __m512i half = _mm512_mask2_permutex2var_epi8(lower[0], index, 0x00000000FFFFFFFF, lower[1]);
    return _mm512_mask2_permutex2var_epi8(upper[0], half, 0xFFFFFFFF00000000, upper[1]);
  }

  QXC_INLINE void load(const uint8_t* lines, __m512i* values) const {
#pragma GCC unroll 4
    for (int line = 0; line < kBits; ++line) {
      const __m512i z = load_line(lines + line * kLineBytes);
      values[2 * line] = look_up(z);
      values[2 * line + 1] = look_up(_mm512_srli_epi32(z, 4));
    }
  }
};

}  // namespace
}  // namespace qxc
