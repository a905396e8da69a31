// From codes to the signed bytes that are multiplied, with NEON: a quarter of a block's lines, 4 rows, at a time.
//
// A Block has a code and bits; `kOffset`, what its bytes stand above the numbers, besides a zero point; `kClasses`
// and `class_of(step)`, how far its bytes stay shifted left, in multiples of `bits`; `largest(c)`, the largest
// magnitude of a byte of class c; and `kTablesPerQuarter`, the registers that its tables take.
#pragma once

#include "neon/matmul.h"

namespace qxc {

namespace neon {
MatMulFloatTiles matmul_float_tile16(qxc_code code, int bits);  // no instruction set of Arm's has a better one
}

namespace {

QXC_INLINE uint8x16_t load_line(const uint8_t* lines, int line) { return vld1q_u8(lines + line * kLineBytes); }

// To the left, or to the right where `by` is negative.
template <int by>
QXC_INLINE uint8x16_t shift(uint8x16_t z) {
  if constexpr (by > 0) return vshlq_n_u8(z, by);
  if constexpr (by < 0) return vshrq_n_u8(z, -by);
  return z;
}

// Four vectors of two 3-bit codes each, in the low six bits; what is above them is in the way.
QXC_INLINE void load_pairs(const uint8_t* lines, uint8x16_t* pairs) {
  for (int line = 0; line < 3; ++line) pairs[line] = load_line(lines, line);
  // the top two bits of the lines, side by side
  pairs[3] = vshrq_n_u8(vsriq_n_u8(vsriq_n_u8(pairs[2], pairs[1], 2), pairs[0], 4), 2);
}

// The code of `step`, in the low four bits of 4, 5 and 6-bit formats' lines.
template <int step>
QXC_INLINE uint8x16_t low_nibble(uint8x16_t line) {
  return step % 2 ? vshrq_n_u8(line, 4) : vandq_u8(line, vdupq_n_u8(0x0F));
}

// Integer codes, multiplied as they are; those of 8 bits less 128.
template <qxc_code code, int bits>
struct Integer {
  static constexpr qxc_code kCode = code;
  static constexpr int kBits = bits;
  static constexpr int32_t kOffset = bits == 8 ? 0 : 1 << (bits - 1);
  static constexpr int kClasses = bits == 2 ? 3 : bits == 3 ? 2 : 1;
  static constexpr int kTablesPerQuarter = 0;

  static constexpr int class_of(int step) { return bits == 2 ? step % 4 % 3 : bits == 3 ? step % 2 : 0; }
  static constexpr int largest(int c) { return bits == 8 ? 128 : ((1 << bits) - 1) << c * bits; }

  Integer(const PackedWeight&, int64_t) {}

  template <int quarter>
  QXC_INLINE void load(const uint8_t* lines, int8x16_t* values) const {
    [[maybe_unused]] uint8x16_t pairs[4];
    if constexpr (bits == 3) load_pairs(lines, pairs);
    unrolled<kSteps>([&](auto step) QXC_LAMBDA {
      constexpr int q = step.value;
      uint8x16_t value;
      if constexpr (bits == 2) {
        const uint8x16_t line = load_line(lines, q / 4);
        value = q % 4 == 3 ? vshrq_n_u8(line, 6) : vandq_u8(line, vdupq_n_u8(0x03 << q % 4 % 3 * 2));
      } else if constexpr (bits == 3) {
        value = vandq_u8(pairs[q / 2], vdupq_n_u8(q % 2 ? 0x38 : 0x07));
      } else if constexpr (bits == 8) {
        value = veorq_u8(load_line(lines, q), vdupq_n_u8(0x80));
      } else {
        value = low_nibble<q>(load_line(lines, q / 2));
        if constexpr (bits == 5) value = vbslq_u8(vdupq_n_u8(0x10), shift<4 - q>(load_line(lines, 4)), value);
        if constexpr (bits == 6) {
          value = vbslq_u8(vdupq_n_u8(0x30), shift<4 - q % 4 * 2>(load_line(lines, 4 + q / 4)), value);
        }
      }
      values[q] = vreinterpretq_s8_u8(value);
    });
  }
};

// What all codebooks share.
template <qxc_code code, int bits>
struct Table {
  static constexpr qxc_code kCode = code;
  static constexpr int kBits = bits;
  static constexpr int32_t kOffset = 0;
  static constexpr int kClasses = 1;
  static constexpr int kEntries = 1 << bits;

  static constexpr int class_of(int) { return 0; }
  static constexpr int largest(int) { return code == QXC_FP ? 12 : 128; }
};

// Codes of one codebook for all rows; that of QXC_FP is fixed.
template <qxc_code code, int bits>
struct PerTensor : Table<code, bits> {
  static constexpr int kTablesPerQuarter = 0;
  using Table<code, bits>::kEntries;

  int8x16_t table;  // 2 bits: by the lower of two codes
  int8x16_t upper;  // 2 bits: by the upper of two codes

  PerTensor(const PackedWeight& weight, int64_t) {
    const int8_t* book = code == QXC_FP ? kTwiceE2M1 : weight.codebook;
    int8_t entries[16], upper_entries[16];
    for (int i = 0; i < 16; ++i) {
      entries[i] = book[i % kEntries];
      upper_entries[i] = book[(i >> bits) % kEntries];
    }
    table = vld1q_s8(entries);
    upper = vld1q_s8(upper_entries);
  }

  template <int quarter>
  QXC_INLINE void load(const uint8_t* lines, int8x16_t* values) const {
    if constexpr (bits == 2) {
      unrolled<2>([&](auto line) QXC_LAMBDA {
        const uint8x16_t z = load_line(lines, line.value);
        const uint8x16_t nibbles[2] = {vandq_u8(z, vdupq_n_u8(0x0F)), vshrq_n_u8(z, 4)};
        unrolled<2>([&](auto i) QXC_LAMBDA {
          values[4 * line.value + 2 * i.value] = vqtbl1q_s8(table, nibbles[i.value]);
          values[4 * line.value + 2 * i.value + 1] = vqtbl1q_s8(upper, nibbles[i.value]);
        });
      });
    } else if constexpr (bits == 3) {
      uint8x16_t pairs[4];
      load_pairs(lines, pairs);
      const uint8x16_t mask = vdupq_n_u8(0x07);
      unrolled<kSteps>([&](auto step) QXC_LAMBDA {
        constexpr int q = step.value;
        const uint8x16_t codes = q % 2 ? vshrq_n_u8(pairs[q / 2], 3) : pairs[q / 2];
        values[q] = vqtbl1q_s8(table, q == 7 ? codes : vandq_u8(codes, mask));
      });
    } else {
      unrolled<kSteps>([&](auto step) QXC_LAMBDA {
        values[step.value] = vqtbl1q_s8(table, low_nibble<step.value>(load_line(lines, step.value / 2)));
      });
    }
  }
};

// Codes of a codebook for every row: four rows' codebooks are one table, told apart by the upper bits of an index.
template <int bits>
struct PerRow : Table<QXC_LUT, bits> {
  static constexpr int kTablesPerQuarter = bits == 2 ? 1 : bits == 3 ? 2 : 4;
  using Table<QXC_LUT, bits>::kEntries;
  using Registers = std::conditional_t<bits == 2, int8x16_t, std::conditional_t<bits == 3, int8x16x2_t, int8x16x4_t>>;

  Registers tables[kQuarters];
  uint8x16_t row;

  PerRow(const PackedWeight& weight, int64_t tile) {
    const int8_t* book = weight.codebook + tile * kTileRows * kEntries;
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      std::memcpy(&tables[quarter], book + quarter * kQuarterRows * kEntries, sizeof(Registers));
    }
    uint8_t rows[kQuarterBytes];
    for (int i = 0; i < kQuarterBytes; ++i) rows[i] = static_cast<uint8_t>(i / 4 * kEntries);
    row = vld1q_u8(rows);
  }

  template <int quarter>
  QXC_INLINE int8x16_t entries(uint8x16_t codes) const {
    const uint8x16_t index = vbslq_u8(vdupq_n_u8(kEntries - 1), codes, row);
    if constexpr (bits == 2) return vqtbl1q_s8(tables[quarter], index);
    if constexpr (bits == 3) return vqtbl2q_s8(tables[quarter], index);
    if constexpr (bits == 4) return vqtbl4q_s8(tables[quarter], index);
  }

  template <int quarter>
  QXC_INLINE void load(const uint8_t* lines, int8x16_t* values) const {
    constexpr int kCodes = bits == 2 ? 4 : 2;  // in a byte
    uint8x16_t bytes[kSteps / kCodes];
    if constexpr (bits == 3) {
      load_pairs(lines, bytes);
    } else {
      for (int line = 0; line < bits; ++line) bytes[line] = load_line(lines, line);
    }
    unrolled<kSteps>([&](auto step) QXC_LAMBDA {
      constexpr int q = step.value;
      values[q] = entries<quarter>(shift<-(q % kCodes) * bits>(bytes[q / kCodes]));
    });
  }
};

struct NeonFloatProduct {
  using Rows = FloatRows;

  template <class Block>
  static void tiles(const PackedWeight& weight, const FloatRows& a, int64_t first, int64_t last, const Output& out) {
    neon::matmul_float_tile16(Block::kCode, Block::kBits)(weight, a, first, last, out);
  }
};

}  // namespace
}  // namespace qxc
