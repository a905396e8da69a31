// Products of bytes added up with `smmla`, which multiplies two rows of A by two rows of weights, 8 inputs each. One
// row of A gains nothing by it.
#pragma once

#include "neon_dotprod/dot.h"

namespace qxc {
namespace {

struct DotMatrix : DotProduct {
  // Bytes of a unit: [steps / 2, 8 pairs of rows, 2 rows, 8 inputs].
  template <int steps>
  static QXC_INLINE void store(const int8x16_t* values, int quarter, int8_t* to) {
    unrolled<steps / 2>([&](auto i) QXC_LAMBDA {
      const int32x4_t first = vreinterpretq_s32_s8(values[2 * i.value]);
      const int32x4_t second = vreinterpretq_s32_s8(values[2 * i.value + 1]);
      int8_t* pairs = to + (i.value * kQuarters + quarter) * 2 * kQuarterBytes;
      vst1q_s8(pairs, vreinterpretq_s8_s32(vzip1q_s32(first, second)));
      vst1q_s8(pairs + kQuarterBytes, vreinterpretq_s8_s32(vzip2q_s32(first, second)));
    });
  }

  template <class Block, int rows>
  static QXC_INLINE void multiply(const int8_t* bytes, const int8_t* a, int64_t stride, int64_t columns,
                                  int32x4_t (*totals)[kQuarters]) {
    constexpr int kPairs = (rows + 1) / 2;  // a single row is a pair with itself
    constexpr int kWeightPairs = kTileRows / 2;
    int32x4_t sums[kPairs][kWeightPairs] = {};
    for (int64_t k = 0; k < columns; k += 8) {
      int8x16_t inputs[kPairs];
      unrolled<kPairs>([&](auto p) QXC_LAMBDA {
        const int8_t* first = a + 2 * p.value * stride + k;
        inputs[p.value] = vcombine_s8(vld1_s8(first), vld1_s8(rows == 1 ? first : first + stride));
      });
      unrolled<kWeightPairs>([&](auto w) QXC_LAMBDA {
        const int8x16_t values = vld1q_s8(bytes + k * kTileRows + w.value * kQuarterBytes);
        unrolled<kPairs>([&](auto p) QXC_LAMBDA {
          int32x4_t& sum = sums[p.value][w.value];
          sum = vmmlaq_s32(sum, inputs[p.value], values);
        });
      });
    }
    unrolled<rows * kQuarters>([&](auto i) QXC_LAMBDA {
      constexpr int m = i.value / kQuarters, quarter = i.value % kQuarters;
      const int64x2_t first = vreinterpretq_s64_s32(sums[m / 2][2 * quarter]);
      const int64x2_t second = vreinterpretq_s64_s32(sums[m / 2][2 * quarter + 1]);
      const int64x2_t of_row = m % 2 ? vzip2q_s64(first, second) : vzip1q_s64(first, second);
      totals[m][quarter] = vaddq_s32(totals[m][quarter], vreinterpretq_s32_s64(of_row));
    });
  }
};

}  // namespace
}  // namespace qxc
