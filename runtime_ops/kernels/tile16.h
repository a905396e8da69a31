// The data that the kernels read and write. Weights lie as docs/formats.md says (layout `tile16.v1`).
#pragma once

#include <cstdint>

#include "qxc/kernels.h"

namespace qxc {

constexpr int kTileRows = QXC_TILE_ROWS;          // output features of a tile
constexpr int kBlockColumns = QXC_BLOCK_COLUMNS;  // inputs of a block
constexpr int kLineBytes = QXC_LINE_BYTES;        // a block of b-bit codes is b lines
constexpr int kSteps = kBlockColumns / 4;         // of 4 inputs, in a block

struct PackedWeight {
  int64_t rows;           // N
  int64_t columns;        // K
  int64_t group_size;     // columns that share a scale
  int64_t groups;         // ceil(K / group_size)
  int64_t blocks;         // ceil(K / 32)
  const uint8_t* packed;  // [tiles, blocks, bits, 64]
  qxc_scale scale;
  const void* scales;          // [tiles, groups, 16], float16 or uint8
  const uint16_t* row_scales;  // float16 [tiles, 16], for two-level scales
  const uint8_t* zero_points;  // [tiles, groups, 16], for QXC_UINT
  const int8_t* codebook;      // [tiles, 16, 2^bits] or [2^bits], for QXC_LUT
  bool codebook_per_tensor;
};

// Rows of A as integers.
//   a8:  a = scales[row] * high[k]
//   a16: a = scales[row, unit of k] * (256 * high[k] + low[k])
// Neither is ever -128, whose negative is no byte: one in 256 numbers of a16 is a step further off.
// A unit is the columns whose products are added up as integers. It lies within a weight's group; what the last one has
// beyond K is zero. All rows' numbers of a unit lie together, so that a pass over many rows finds them in a few lines.
struct QuantizedRows {
  int64_t rows;
  int64_t columns;  // K, rounded up to whole blocks
  int64_t unit;     // columns of a unit: 16, 32, 64, 128 or 256
  int64_t units;
  int8_t* high;        // [units, rows, unit]
  int8_t* low;         // [units, rows, unit]; null in a8
  int32_t* high_sums;  // [rows, units]: sums of `high` over a unit
  int32_t* low_sums;   // [rows, units]; null in a8
  float* scales;       // a8: [rows]; a16: [rows, units]
  float* sums;  // [rows, units], for zero points. a8: sums of `high`; a16: of A itself, more exact than of integers
};

// Rows of A as they are.
struct FloatRows {
  int64_t rows;
  const float* a;    // [rows, K]
  const bool* skip;  // rows that are not computed
};

struct Output {
  void* y;  // [M, N], float32 or float16
  bool is_half;
  int64_t stride;  // N
  const float* bias;
  int64_t bias_stride;  // 1, or 0 where all rows share one number
};

}  // namespace qxc
