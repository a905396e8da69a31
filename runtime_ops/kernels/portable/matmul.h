// y[M, 16] = a8, a16 or float [M, K] x codes [16, K], any format, in portable C++.
#pragma once

#include "decode_row.h"
#include "matmul_tiles.h"
#include "tile_loops.h"

namespace qxc {
namespace {

// The numbers, before scaling, of one unit of one tile: [unit / 4, 16, 4]. Integers as if they had no zero points.
template <qxc_code code, int bits>
void decode_unit(const PackedWeight& weight, int64_t tile, int64_t first_column, int64_t unit, int16_t* values) {
  for (int64_t k = 0; k < unit; k += 4) {
    const int64_t block = (first_column + k) / kBlockColumns;
    const int step = static_cast<int>((first_column + k) % kBlockColumns) / 4;
    const uint8_t* lines = weight.packed + (tile * weight.blocks + block) * bits * kLineBytes;
    for (int lane = 0; lane < kLineBytes; ++lane) {
      const int stored = code_at<bits>(lines, step, lane);
      const int row = lane / 4;
      int value;
      if constexpr (code == QXC_FP) {
        value = kTwiceE2M1[stored];
      } else if constexpr (code != QXC_LUT) {
        value = stored - (1 << (bits - 1));
      } else {
        const int64_t table = weight.codebook_per_tensor ? 0 : tile * kTileRows + row;
        value = weight.codebook[(table << bits) + stored];
      }
      values[k / 4 * kLineBytes + lane] = static_cast<int16_t>(value);
    }
  }
}

inline void dot(const int16_t* values, const int8_t* a, int64_t steps, int32_t* totals) {
  for (int64_t step = 0; step < steps; ++step) {
    for (int row = 0; row < kTileRows; ++row) {
      const int16_t* v = values + step * kLineBytes + 4 * row;
      const int8_t* q = a + 4 * step;
      totals[row] += v[0] * q[0] + v[1] * q[1] + v[2] * q[2] + v[3] * q[3];
    }
  }
}

template <qxc_code code, int bits, Activation activation>
void matmul_pass(const PackedWeight& weight, const QuantizedRows& a, int64_t tile, int64_t first_row, int64_t rows,
                 const Output& out) {
  float sums[kRowsPerPass][kTileRows] = {};
  int16_t values[kLargestUnit / 4 * kLineBytes];
  for (int64_t unit = 0; unit < a.units; ++unit) {
    const int64_t first_column = unit * a.unit;
    const int64_t columns = smaller(a.unit, a.columns - first_column);
    const int64_t group = first_column / weight.group_size;
    decode_unit<code, bits>(weight, tile, first_column, columns, values);
    for (int64_t m = 0; m < rows; ++m) {
      const int64_t row = first_row + m;
      int32_t totals[kTileRows] = {};
      dot(values, a.high + unit_offset(a, row, unit), columns / 4, totals);
      float unit_scale = 1;
      if constexpr (activation == Activation::kA16) {
        for (int32_t& total : totals) total *= 256;
        dot(values, a.low + unit_offset(a, row, unit), columns / 4, totals);
        unit_scale = a.scales[row * a.units + unit];
      }
      for (int r = 0; r < kTileRows; ++r) {
        float product = unit_scale * static_cast<float>(totals[r]);
        if constexpr (code == QXC_UINT) {
          const int zero = weight.zero_points[(tile * weight.groups + group) * kTileRows + r] - (1 << (bits - 1));
          product -= static_cast<float>(zero) * a.sums[row * a.units + unit];
        }
        constexpr float kUnit = code == QXC_FP ? 0.5f : 1;  // codes stand for twice their numbers
        sums[m][r] += kUnit * scale_at(weight, tile, group, r) * product;
      }
    }
  }
  const int64_t valid = smaller(kTileRows, weight.rows - tile * kTileRows);
  for (int64_t m = 0; m < rows; ++m) {
    const float scale = row_scale<activation>(a, first_row + m);
    for (int64_t r = 0; r < valid; ++r) {
      store_output(out, first_row + m, tile * kTileRows + r, scale * sums[m][r]);
    }
  }
}

// Any format: which of its kinds a codebook is, a weight says itself.
template <qxc_code code, int bits>
struct Format {
  static constexpr qxc_code kCode = code;
  static constexpr int kBits = bits;
};
template <qxc_code code, int bits>
struct Integer : Format<code, bits> {};
template <qxc_code code, int bits>
struct PerTensor : Format<code, bits> {};
template <int bits>
struct PerRow : Format<QXC_LUT, bits> {};

template <Activation activation>
struct PortableRoundedProduct {
  using Rows = QuantizedRows;

  template <class Block>
  static void tiles(const PackedWeight& weight, const QuantizedRows& a, int64_t first, int64_t last,
                    const Output& out) {
    each_pass(first, last, a.rows, [&](int64_t tile, int64_t row, int64_t rows) {
      matmul_pass<Block::kCode, Block::kBits, activation>(weight, a, tile, row, rows, out);
    });
  }
};

// Rows of weights are decoded once for all rows of A in a pass, which adds up eight sums that may be one vector.
inline void matmul_float_row(const PackedWeight& weight, DecodeColumns decode, const FloatRows& a, int64_t n,
                             int64_t first_row, int64_t rows, const Output& out) {
  constexpr int kChunk = 256, kLanes = 8;
  float values[kChunk];
  float sums[kRowsPerPass][kLanes] = {};
  for (int64_t k = 0; k < weight.columns; k += kChunk) {
    const int64_t count = smaller(kChunk, weight.columns - k);
    decode(weight, n, k, k + count, values);
    for (int64_t m = 0; m < rows; ++m) {
      if (a.skip[first_row + m]) continue;
      const float* row = a.a + (first_row + m) * weight.columns + k;
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) sums[m][lane] += row[i + lane] * values[i + lane];
      }
      for (; i < count; ++i) sums[m][0] += row[i] * values[i];
    }
  }
  for (int64_t m = 0; m < rows; ++m) {
    if (a.skip[first_row + m]) continue;
    float total = 0;
    for (const float sum : sums[m]) total += sum;
    store_output(out, first_row + m, n, total);
  }
}

struct PortableFloatProduct {
  using Rows = FloatRows;

  template <class Block>
  static void tiles(const PackedWeight& weight, const FloatRows& a, int64_t first, int64_t last, const Output& out) {
    const int64_t end = smaller(last * kTileRows, weight.rows);
    each_pass(first * kTileRows, end, a.rows, [&](int64_t n, int64_t row, int64_t rows) {
      matmul_float_row(weight, decode_columns<Block::kCode, Block::kBits>, a, n, row, rows, out);
    });
  }
};

}  // namespace
}  // namespace qxc
