// From codes to the bytes that are multiplied, with AVX2. A 128-bit lane is 4 rows, and shuffles index 16 entries.
#pragma once

#include "avx2/codes.h"

namespace qxc {
namespace {

// Turns a block's codes, into the entries of one table: a codebook, or E2M1.
template <qxc_code code, int bits>
struct PerTensor {
  static constexpr qxc_code kCode = code;
  static constexpr int kBits = bits;

  __m256i table;

  PerTensor(const PackedWeight& weight, int64_t) {
    const int8_t* book = code == QXC_FP ? kTwiceE2M1 : weight.codebook;
    alignas(16) int8_t entries[16];
    for (int i = 0; i < 16; i += 1 << bits) std::memcpy(entries + i, book, size_t{1} << bits);
    table = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(entries)));
    table = _mm256_xor_si256(table, mask8(kRaise));
  }

  QXC_INLINE void load(const uint8_t* lines, int, __m256i* values) const {
    load_codes<bits>(lines, values);
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; ++step) values[step] = _mm256_shuffle_epi8(table, values[step]);
  }
};

// The same with a codebook for every row. 16 entries are `kRowsPerTable` rows' codebooks, told apart by the upper bits
// of an index; the rows of other tables are blended in.
template <int bits>
struct PerRow {
  static constexpr qxc_code kCode = QXC_LUT;
  static constexpr int kBits = bits;
  static constexpr int kEntries = 1 << bits;
  static constexpr int kRowsPerTable = 16 / kEntries;
  static constexpr int kTables = 4 / kRowsPerTable;

  __m256i tables[2][kTables];
  __m256i row;

  PerRow(const PackedWeight& weight, int64_t tile) {
    const int8_t* book = weight.codebook + tile * kTileRows * kEntries;
    alignas(32) int8_t bytes[32];
    for (int half = 0; half < 2; ++half) {
      for (int table = 0; table < kTables; ++table) {
        for (int lane = 0; lane < 2; ++lane) {  // whose 16 entries lie side by side in the codebooks
          const int first_row = half * kHalfRows + lane * 4 + table * kRowsPerTable;
          std::memcpy(bytes + 16 * lane, book + first_row * kEntries, 16);
        }
        tables[half][table] =
            _mm256_xor_si256(_mm256_load_si256(reinterpret_cast<const __m256i*>(bytes)), mask8(kRaise));
      }
    }
    const auto index_of_row = [](int r) { return r % kRowsPerTable * kEntries * 0x01010101; };
    row =
        _mm256_broadcastsi128_si256(_mm_setr_epi32(index_of_row(0), index_of_row(1), index_of_row(2), index_of_row(3)));
  }

  QXC_INLINE void load(const uint8_t* lines, int half, __m256i* values) const {
    load_codes<bits>(lines, values);
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; ++step) {
      const __m256i index = _mm256_or_si256(values[step], row);
      __m256i entries = _mm256_shuffle_epi8(tables[half][0], index);
      if constexpr (kTables == 2) {
        entries = _mm256_blend_epi32(entries, _mm256_shuffle_epi8(tables[half][1], index), 0xCC);
      } else if constexpr (kTables == 4) {
        entries = _mm256_blend_epi32(entries, _mm256_shuffle_epi8(tables[half][1], index), 0x22);
        entries = _mm256_blend_epi32(entries, _mm256_shuffle_epi8(tables[half][2], index), 0x44);
        entries = _mm256_blend_epi32(entries, _mm256_shuffle_epi8(tables[half][3], index), 0x88);
      }
      values[step] = entries;
    }
  }
};

// Integer codes are multiplied as they are.
template <qxc_code code, int bits>
struct Integer {
  static constexpr qxc_code kCode = code;
  static constexpr int kBits = bits;

  Integer(const PackedWeight&, int64_t) {}

  QXC_INLINE void load(const uint8_t* lines, int, __m256i* values) const { load_codes<bits>(lines, values); }
};

}  // namespace
}  // namespace qxc
