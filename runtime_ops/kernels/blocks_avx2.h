// From codes to the bytes that are multiplied, with AVX2. A 128-bit lane is 4 rows, and shuffles index 16 entries.
#pragma once

#include "matmul_avx2.h"

namespace qxc {
namespace {

// Turns a block's codes, as `codes(lines, values)` reads them, into one codebook's entries.
template <int bits, void (*codes)(const uint8_t*, __m256i*)>
struct PerTensor {
  static constexpr Code kCode = Code::kLut;
  static constexpr int kBits = bits;

  __m256i table;

  PerTensor(const PackedWeight& weight, int64_t) {
    alignas(32) int8_t entries[32];
    for (int i = 0; i < 32; ++i) entries[i] = weight.codebook[i % (1 << bits)];
    table = _mm256_load_si256(reinterpret_cast<const __m256i*>(entries));
  }

  QXC_INLINE void load(const uint8_t* lines, int, __m256i* values) const {
    codes(lines, values);
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; ++step) values[step] = _mm256_shuffle_epi8(table, values[step]);
  }
};

// The same with a codebook for every row. 16 entries are `kRowsPerTable` rows' codebooks, told apart by the upper bits
// of an index; the rows of other tables are blended in.
template <int bits, void (*codes)(const uint8_t*, __m256i*)>
struct PerRow {
  static constexpr Code kCode = Code::kLut;
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
        for (int i = 0; i < 32; ++i) {
          const int of_row = half * kHalfRows + i / 16 * 4 + table * kRowsPerTable + i % 16 / kEntries;
          bytes[i] = book[of_row * kEntries + i % kEntries];
        }
        tables[half][table] = _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes));
      }
    }
    for (int i = 0; i < 32; ++i) bytes[i] = static_cast<int8_t>(i / 4 % kRowsPerTable * kEntries);
    row = _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes));
  }

  QXC_INLINE void load(const uint8_t* lines, int half, __m256i* values) const {
    codes(lines, values);
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
template <Code code, int bits, void (*codes)(const uint8_t*, __m256i*)>
struct Integer {
  static constexpr Code kCode = code;
  static constexpr int kBits = bits;

  Integer(const PackedWeight&, int64_t) {}

  QXC_INLINE void load(const uint8_t* lines, int, __m256i* values) const { codes(lines, values); }
};

template <int bits, void (*codes)(const uint8_t*, __m256i*)>
MatMulTiles matmul_of(Code code, Activation activation) {
  if constexpr (bits <= 4) {
    if (code == Code::kLut) return of_codebook<PerTensor<bits, codes>, PerRow<bits, codes>>(activation);
  }
  return code == Code::kInt ? of_activation<Integer<Code::kInt, bits, codes>>(activation)
                            : of_activation<Integer<Code::kUInt, bits, codes>>(activation);
}

}  // namespace
}  // namespace qxc
