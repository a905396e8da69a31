// y[M, 16] = a8 or a16 [M, K] x codes [16, K], with NEON: what the kernels of all bit widths and instruction sets
// share.
//
// A quarter of a line is 128 bits: 4 rows of 4 inputs. A `Block` policy (blocks.h) turns a quarter of a block's
// lines into eight vectors of signed bytes, one a step: byte 4 * row + j of vector q belongs to input 4 * q + j. A
// `Dot` policy (dot.h) multiplies and adds them up. Integer codes may stay shifted left by `bits` times their
// class; the sums of a class are shifted back.
//
// One row of A takes each weight from the line to the sums in registers. More rows share a unit of weights, decoded to
// bytes on the stack.
#pragma once

#include <arm_neon.h>

#include "matmul_tiles.h"
#include "tile_loops.h"

namespace qxc {
namespace {

constexpr int64_t kPrefetchBytes = 4096;
constexpr int kQuarters = 4;
constexpr int kQuarterBytes = kLineBytes / kQuarters;
constexpr int kQuarterRows = kTileRows / kQuarters;
constexpr int kHalfSteps = kSteps / 2;  // of a unit of 16 columns, and of a vector of inputs

// Calls f with the constants 0 to count - 1: intrinsics take lanes and shifts as constants only.
template <int count, class Function>
QXC_INLINE void unrolled(const Function& f) {
  if constexpr (count > 0) {
    unrolled<count - 1>(f);
    f(std::integral_constant<int, count - 1>());
  }
}

// How most Dot policies keep the bytes of a unit.
struct UnitOfSteps {
  // [steps, 4 quarters, 16]
  template <int steps>
  static QXC_INLINE void store(const int8x16_t* values, int quarter, int8_t* to) {
    unrolled<steps>(
        [&](auto q) QXC_LAMBDA { vst1q_s8(to + (q.value * kQuarters + quarter) * kQuarterBytes, values[q.value]); });
  }
};

// The scales, and zero points less 2^(bits-1), of one group of a tile.
template <qxc_code code, int bits>
struct Group {
  float32x4_t scales[kQuarters];
  float32x4_t zeros[kQuarters];  // QXC_UINT only

  QXC_INLINE Group(const PackedWeight& weight, int64_t tile, int64_t column) {
    const int64_t at = (tile * weight.groups + column / weight.group_size) * kTileRows;
    if (weight.scale == QXC_SCALE_FLOAT16) {
      load_halves(static_cast<const uint16_t*>(weight.scales) + at);
    } else {
      const uint8x16_t bytes = vld1q_u8(static_cast<const uint8_t*>(weight.scales) + at);
      if (weight.scale == QXC_SCALE_E8M0) {
        set_powers_of_two(bytes);
      } else {
        load_halves(weight.row_scales + tile * kTileRows);
        multiply_by_256ths(bytes);
      }
    }
    if constexpr (code == QXC_FP) {  // codes stand for twice their numbers
      unrolled<kQuarters>([&](auto q) QXC_LAMBDA { scales[q.value] = vmulq_n_f32(scales[q.value], 0.5f); });
    }
    if constexpr (code == QXC_UINT) {
      const uint8x16_t bytes = vld1q_u8(weight.zero_points + at);
      const uint8x8_t middle = vdup_n_u8(1 << (bits - 1));
      const int16x8_t low = vreinterpretq_s16_u16(vsubl_u8(vget_low_u8(bytes), middle));
      const int16x8_t high = vreinterpretq_s16_u16(vsubl_u8(vget_high_u8(bytes), middle));
      zeros[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(low)));
      zeros[1] = vcvtq_f32_s32(vmovl_high_s16(low));
      zeros[2] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(high)));
      zeros[3] = vcvtq_f32_s32(vmovl_high_s16(high));
    }
  }

 private:
  QXC_INLINE void load_halves(const uint16_t* halves) {
    unrolled<kQuarters>([&](auto q) QXC_LAMBDA {
      scales[q.value] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves + q.value * kQuarterRows)));
    });
  }

  // 2^(byte - 127); half the float is put together as 16 bits.
  QXC_INLINE void set_powers_of_two(uint8x16_t bytes) {
    // 0 is subnormal and 255 NaN: both have the first bit of the fraction set
    const uint8x16_t is_special = vcleq_u8(vaddq_u8(bytes, vdupq_n_u8(1)), vdupq_n_u8(1));
    const uint8x16_t fraction = vandq_u8(is_special, vdupq_n_u8(0x40));
    const uint16x8_t low = vaddw_u8(vshll_n_u8(vget_low_u8(bytes), 7), vget_low_u8(fraction));
    const uint16x8_t high = vaddw_u8(vshll_n_u8(vget_high_u8(bytes), 7), vget_high_u8(fraction));
    const uint32x4_t powers[kQuarters] = {vshll_n_u16(vget_low_u16(low), 16), vshll_n_u16(vget_high_u16(low), 16),
                                          vshll_n_u16(vget_low_u16(high), 16), vshll_n_u16(vget_high_u16(high), 16)};
    unrolled<kQuarters>([&](auto q) QXC_LAMBDA { scales[q.value] = vreinterpretq_f32_u32(powers[q.value]); });
  }

  QXC_INLINE void multiply_by_256ths(uint8x16_t bytes) {
    const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_high_u8(bytes);
    const uint32x4_t numbers[kQuarters] = {vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low),
                                           vmovl_u16(vget_low_u16(high)), vmovl_high_u16(high)};
    unrolled<kQuarters>([&](auto q) QXC_LAMBDA {
      scales[q.value] = vmulq_f32(vcvtq_f32_u32(numbers[q.value]), vmulq_n_f32(scales[q.value], 0x1p-8f));
    });
  }
};

// Adds one unit's sums of products of bytes, `at` in the units of A, to y.
template <class Block, Activation activation>
QXC_INLINE void add_unit(const Group<Block::kCode, Block::kBits>& group, const QuantizedRows& a, int64_t at,
                         const int32x4_t* totals, float32x4_t* y) {
  int32_t sum = a.high_sums[at];
  if constexpr (activation == Activation::kA16) sum = 256 * sum + a.low_sums[at];
  const int32x4_t offset = vdupq_n_s32(Block::kOffset * sum);
  unrolled<kQuarters>([&](auto q) QXC_LAMBDA {
    float32x4_t product = vcvtq_f32_s32(Block::kOffset ? vsubq_s32(totals[q.value], offset) : totals[q.value]);
    if constexpr (activation == Activation::kA16) product = vmulq_n_f32(product, a.scales[at]);
    if constexpr (Block::kCode == QXC_UINT) product = vfmsq_n_f32(product, group.zeros[q.value], a.sums[at]);
    y[q.value] = vfmaq_f32(y[q.value], product, group.scales[q.value]);
  });
}

// Writes one row of a tile of Y.
QXC_INLINE void write(const float32x4_t* y, float row_scale, const PackedWeight& weight, int64_t tile, int64_t row,
                      const Output& out) {
  const int64_t n = tile * kTileRows;
  if (weight.rows - n < kTileRows) {
    float values[kTileRows];
    unrolled<kQuarters>(
        [&](auto q) QXC_LAMBDA { vst1q_f32(values + q.value * kQuarterRows, vmulq_n_f32(y[q.value], row_scale)); });
    for (int64_t r = 0; r < weight.rows - n; ++r) store_output(out, row, n + r, values[r]);
    return;
  }
  unrolled<kQuarters>([&](auto q) QXC_LAMBDA {
    const int64_t column = n + q.value * kQuarterRows;
    const float32x4_t bias = out.bias_stride ? vld1q_f32(out.bias + column) : vdupq_n_f32(out.bias[0]);
    const float32x4_t value = vaddq_f32(vmulq_n_f32(y[q.value], row_scale), bias);
    const int64_t at = row * out.stride + column;
    if (out.is_half) {
      vst1_u16(static_cast<uint16_t*>(out.y) + at, vreinterpret_u16_f16(vcvt_f16_f32(value)));
    } else {
      vst1q_f32(static_cast<float*>(out.y) + at, value);
    }
  });
}

template <int bits>
QXC_INLINE void prefetch(const uint8_t* lines) {
  for (int line = 0; line < bits; ++line) {
    const uintptr_t ahead = reinterpret_cast<uintptr_t>(lines + line * kLineBytes) + kPrefetchBytes;
    __builtin_prefetch(reinterpret_cast<const void*>(ahead));
  }
}

// The sum over the classes, each shifted back.
template <class Block, class Dot>
QXC_INLINE int32x4_t total_of(const typename Dot::Sum* sums) {
  int32x4_t total = Dot::total(sums[0]);
  unrolled<Block::kClasses - 1>([&](auto c) QXC_LAMBDA {
    total = vsraq_n_s32(total, Dot::total(sums[c.value + 1]), (c.value + 1) * Block::kBits);
  });
  return total;
}

// As many quarters as have their sums and tables in registers.
template <class Block, class Dot, Activation activation>
constexpr int quarters_at_once() {
  constexpr int kHalves = activation == Activation::kA16 ? 2 : 1;
  constexpr int kRegisters = Block::kClasses * Dot::kRegistersPerSum * kHalves + Block::kTablesPerQuarter;
  return kRegisters <= 4 ? 4 : kRegisters <= 8 ? 2 : 1;
}

// `blocks` blocks of one unit times one row of A, for quarters first.. of the tile.
template <class Block, class Dot, Activation activation, int first>
QXC_INLINE void multiply_lines(const Block& block, const uint8_t* lines, int64_t blocks, const QuantizedRows& a,
                               int64_t column, int32x4_t* totals) {
  constexpr bool kA16 = activation == Activation::kA16;
  constexpr int kCount = quarters_at_once<Block, Dot, activation>();
  typename Dot::Sum high_sums[kCount][Block::kClasses] = {};
  [[maybe_unused]] typename Dot::Sum low_sums[kCount][Block::kClasses] = {};
  for (; blocks > 0; --blocks) {
    if constexpr (first == 0) prefetch<Block::kBits>(lines);
    const typename Dot::Inputs high_inputs(a.high + column);
    [[maybe_unused]] const typename Dot::Inputs low_inputs((kA16 ? a.low : a.high) + column);
    unrolled<kCount>([&](auto q) QXC_LAMBDA {
      constexpr int kQuarter = first + q.value;
      int8x16_t values[kSteps];
      block.template load<kQuarter>(lines + kQuarter * kQuarterBytes, values);
      Dot::template add<Block>(values, high_inputs, high_sums[q.value]);
      if constexpr (kA16) Dot::template add<Block>(values, low_inputs, low_sums[q.value]);
    });
    lines += Block::kBits * kLineBytes;
    column += kBlockColumns;
  }
  unrolled<kCount>([&](auto q) QXC_LAMBDA {
    int32x4_t total = total_of<Block, Dot>(high_sums[q.value]);
    if constexpr (kA16) total = vaddq_s32(vshlq_n_s32(total, 8), total_of<Block, Dot>(low_sums[q.value]));
    totals[first + q.value] = total;
  });
}

// One row of A, in units of whole blocks.
template <class Block, class Dot, Activation activation>
void matvec_tile(const PackedWeight& weight, const QuantizedRows& a, int64_t tile, const Output& out) {
  constexpr int kCount = quarters_at_once<Block, Dot, activation>();
  const Block block(weight, tile);
  const uint8_t* lines = weight.packed + tile * weight.blocks * Block::kBits * kLineBytes;
  float32x4_t y[kQuarters] = {};
  for (int64_t unit = 0, column = 0; unit < a.units; ++unit, column += a.unit) {
    const int64_t blocks = smaller(a.unit, a.columns - column) / kBlockColumns;
    int32x4_t totals[kQuarters];
    unrolled<kQuarters / kCount>([&](auto pass) QXC_LAMBDA {
      multiply_lines<Block, Dot, activation, pass.value * kCount>(block, lines, blocks, a, column, totals);
    });
    add_unit<Block, activation>({weight, tile, column}, a, unit, totals, y);
    lines += blocks * Block::kBits * kLineBytes;
  }
  write(y, row_scale<activation>(a, 0), weight, tile, 0, out);
}

// One block as bytes: all classes shifted back.
template <class Block, int quarter>
QXC_INLINE void load_bytes(const Block& block, const uint8_t* lines, int8x16_t* values) {
  block.template load<quarter>(lines + quarter * kQuarterBytes, values);
  unrolled<kSteps>([&](auto step) QXC_LAMBDA {
    constexpr int kShift = Block::class_of(step.value) * Block::kBits;
    if constexpr (kShift > 0) values[step.value] = vshrq_n_s8(values[step.value], kShift);
  });
}

// The bytes of one unit of one tile, as the Dot policy arranges them.
template <class Block, class Dot>
QXC_INLINE void decode_unit(const Block& block, const PackedWeight& weight, int64_t tile, int64_t first_column,
                            int64_t columns, int8_t* bytes) {
  const uint8_t* lines =
      weight.packed + (tile * weight.blocks + first_column / kBlockColumns) * Block::kBits * kLineBytes;
  for (int64_t column = 0; column < columns; column += kBlockColumns) {
    prefetch<Block::kBits>(lines);
    unrolled<kQuarters>([&](auto q) QXC_LAMBDA {
      int8x16_t values[kSteps];
      load_bytes<Block, q.value>(block, lines, values);
      int8_t* to = bytes + column * kTileRows;
      if (columns - column >= kBlockColumns) {
        Dot::template store<kSteps>(values, q.value, to);
      } else {
        Dot::template store<kHalfSteps>(first_column % kBlockColumns ? values + kHalfSteps : values, q.value, to);
      }
    });
    lines += Block::kBits * kLineBytes;
  }
}

template <class Block, class Dot, Activation activation, int rows>
QXC_INLINE void multiply_bytes(const Group<Block::kCode, Block::kBits>& group, const QuantizedRows& a, int64_t row,
                               int64_t unit, int64_t columns, const int8_t* bytes, float32x4_t (*y)[kQuarters]) {
  const int64_t from = unit_offset(a, row, unit);
  int32x4_t totals[rows][kQuarters] = {};
  Dot::template multiply<Block, rows>(bytes, a.high + from, a.unit, columns, totals);
  if constexpr (activation == Activation::kA16) {
    unrolled<rows * kQuarters>([&](auto i) QXC_LAMBDA {
      int32x4_t& total = totals[i.value / kQuarters][i.value % kQuarters];
      total = vshlq_n_s32(total, 8);
    });
    Dot::template multiply<Block, rows>(bytes, a.low + from, a.unit, columns, totals);
  }
  unrolled<rows>([&](auto m) QXC_LAMBDA {
    add_unit<Block, activation>(group, a, (row + m.value) * a.units + unit, totals[m.value], y[m.value]);
  });
}

// Up to kRowsPerPass rows of A.
template <class Block, class Dot, Activation activation>
void matmul_pass(const PackedWeight& weight, const QuantizedRows& a, int64_t tile, int64_t first_row, int64_t rows,
                 const Output& out) {
  const Block block(weight, tile);
  alignas(16) int8_t bytes[kLargestUnit * kTileRows];
  float32x4_t y[kRowsPerPass][kQuarters];
  std::memset(y, 0, static_cast<size_t>(rows) * sizeof y[0]);
  for (int64_t unit = 0; unit < a.units; ++unit) {
    const int64_t first_column = unit * a.unit;
    const int64_t columns = smaller(a.unit, a.columns - first_column);
    const Group<Block::kCode, Block::kBits> group(weight, tile, first_column);
    decode_unit<Block, Dot>(block, weight, tile, first_column, columns, bytes);
    each_rows<Dot::kMostRows>(rows, [&](auto count, int64_t m) QXC_LAMBDA {
      multiply_bytes<Block, Dot, activation, count.value>(group, a, first_row + m, unit, columns, bytes, y + m);
    });
  }
  for (int64_t m = 0; m < rows; ++m) {
    write(y[m], row_scale<activation>(a, first_row + m), weight, tile, first_row + m, out);
  }
}

template <class Dot, Activation activation>
struct NeonRoundedProduct {
  using Rows = QuantizedRows;

  template <class Block>
  static void tiles(const PackedWeight& weight, const QuantizedRows& a, int64_t first, int64_t last,
                    const Output& out) {
    if (a.rows == 1 && a.unit >= kBlockColumns) {
      for (int64_t tile = first; tile < last; ++tile) matvec_tile<Block, Dot, activation>(weight, a, tile, out);
      return;
    }
    each_pass(first, last, a.rows, [&](int64_t tile, int64_t row, int64_t rows) QXC_LAMBDA {
      matmul_pass<Block, Dot, activation>(weight, a, tile, row, rows, out);
    });
  }
};

}  // namespace
}  // namespace qxc
