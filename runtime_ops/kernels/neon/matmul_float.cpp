// y[M, 16] = float [M, K] x codes [16, K], any format, with NEON. A block of weights is decoded to floats once for up
// to kRowsPerPass rows of A. Every block's products are added up by themselves, which keeps rounding errors small.
#include "neon/blocks.h"

namespace qxc {
namespace {

// [32, 16] weights: lanes are rows of W.
using BlockWeights = float32x4_t[kBlockColumns][kQuarters];

// Four inputs of four rows, the quarter's, times their scales.
template <class Block, int quarter>
QXC_INLINE void decode_step(int8x16_t bytes, const Group<Block::kCode, Block::kBits>& group,
                            float32x4_t (*weights)[kQuarters]) {
  const uint8_t kByInput[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  const int8x16_t by_input = vsubq_s8(vqtbl1q_s8(bytes, vld1q_u8(kByInput)), vdupq_n_s8(Block::kOffset));
  const int16x8_t low = vmovl_s8(vget_low_s8(by_input)), high = vmovl_high_s8(by_input);
  const int32x4_t inputs[4] = {vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)),
                               vmovl_high_s16(high)};
  unrolled<4>([&](auto j) QXC_LAMBDA {
    float32x4_t value = vcvtq_f32_s32(inputs[j.value]);
    if constexpr (Block::kCode == QXC_UINT) value = vsubq_f32(value, group.zeros[quarter]);
    weights[j.value][quarter] = vmulq_f32(value, group.scales[quarter]);
  });
}

template <class Block>
QXC_INLINE void decode_block(const Block& block, const PackedWeight& weight, int64_t tile, int64_t column,
                             BlockWeights& weights) {
  using BlockGroup = Group<Block::kCode, Block::kBits>;
  const uint8_t* lines = weight.packed + (tile * weight.blocks + column / kBlockColumns) * Block::kBits * kLineBytes;
  // a group is 16 columns or whole blocks; the second half may lie beyond the last
  const BlockGroup groups[2] = {{weight, tile, column},
                                {weight, tile, smaller(column + kBlockColumns / 2, weight.columns - 1)}};
  unrolled<kQuarters>([&](auto quarter) QXC_LAMBDA {
    constexpr int r = quarter.value;
    int8x16_t values[kSteps];
    load_bytes<Block, r>(block, lines, values);
    unrolled<kSteps>([&](auto q) QXC_LAMBDA {
      decode_step<Block, r>(values[q.value], groups[q.value / kHalfSteps], weights + 4 * q.value);
    });
  });
}

// `count` rows of A, at columns [0, columns) of a block.
template <int count>
QXC_INLINE void multiply_block(const BlockWeights& weights, const float* const* rows, int64_t column, int64_t columns,
                               float32x4_t (*y)[kQuarters]) {
  float32x4_t sums[count][kQuarters] = {};
  for (int64_t k = 0; k < columns; ++k) {
    unrolled<kQuarters>([&](auto quarter) QXC_LAMBDA {
      const float32x4_t values = weights[k][quarter.value];
      unrolled<count>([&](auto m) QXC_LAMBDA {
        float32x4_t& sum = sums[m.value][quarter.value];
        sum = vfmaq_n_f32(sum, values, rows[m.value][column + k]);
      });
    });
  }
  unrolled<count * kQuarters>([&](auto i) QXC_LAMBDA {
    constexpr int m = i.value / kQuarters, quarter = i.value % kQuarters;
    y[m][quarter] = vaddq_f32(y[m][quarter], sums[m][quarter]);
  });
}

template <class Block>
void matmul_float_pass(const PackedWeight& weight, const FloatRows& a, int64_t tile, int64_t first_row,
                       int64_t last_row, const Output& out) {
  const float* rows[kRowsPerPass];
  int64_t indices[kRowsPerPass];
  int64_t count = 0;
  for (int64_t row = first_row; row < last_row; ++row) {
    if (a.skip[row]) continue;
    rows[count] = a.a + row * weight.columns;
    indices[count++] = row;
  }
  if (count == 0) return;
  const Block block(weight, tile);
  BlockWeights weights;
  float32x4_t y[kRowsPerPass][kQuarters];
  std::memset(y, 0, static_cast<size_t>(count) * sizeof y[0]);
  for (int64_t column = 0; column < weight.columns; column += kBlockColumns) {
    const int64_t columns = smaller(kBlockColumns, weight.columns - column);
    prefetch<Block::kBits>(weight.packed + (tile * weight.blocks + column / kBlockColumns) * Block::kBits * kLineBytes);
    decode_block(block, weight, tile, column, weights);
    int64_t m = 0;
    for (; m + 4 <= count; m += 4) multiply_block<4>(weights, rows + m, column, columns, y + m);
    for (; m < count; ++m) multiply_block<1>(weights, rows + m, column, columns, y + m);
  }
  for (int64_t m = 0; m < count; ++m) write(y[m], 1, weight, tile, indices[m], out);
}

struct FloatProduct {
  using Rows = FloatRows;

  template <class Block>
  static void tiles(const PackedWeight& weight, const FloatRows& a, int64_t first, int64_t last, const Output& out) {
    each_pass(first, last, a.rows, [&](int64_t tile, int64_t row, int64_t rows) QXC_LAMBDA {
      matmul_float_pass<Block>(weight, a, tile, row, row + rows, out);
    });
  }
};

}  // namespace

MatMulFloatTiles neon::matmul_float_tile16(qxc_code code, int bits) {
  switch (bits) {
    case 2: return tiles_of<FloatProduct, 2>(code);
    case 3: return tiles_of<FloatProduct, 3>(code);
    case 4: return tiles_of<FloatProduct, 4>(code);
    case 5: return tiles_of<FloatProduct, 5>(code);
    case 6: return tiles_of<FloatProduct, 6>(code);
    default: return tiles_of<FloatProduct, 8>(code);
  }
}

}  // namespace qxc
