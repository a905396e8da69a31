// Products of bytes added up with the dot-product instructions.
#pragma once

#include "neon/blocks.h"

namespace qxc {
namespace {

struct DotProduct : UnitOfSteps {
  static constexpr int kRegistersPerSum = 1;
  static constexpr int kMostRows = 4;

  using Sum = int32x4_t;  // a lane a row

  // A block's inputs: four steps a vector.
  struct Inputs {
    int8x16_t halves[2];

    QXC_INLINE explicit Inputs(const int8_t* a) : halves{vld1q_s8(a), vld1q_s8(a + 16)} {}
  };

  template <class Block>
  static QXC_INLINE void add(const int8x16_t* values, const Inputs& inputs, Sum* sums) {
    unrolled<kSteps>([&](auto q) QXC_LAMBDA {
      Sum& sum = sums[Block::class_of(q.value)];
      sum = vdotq_laneq_s32(sum, values[q.value], inputs.halves[q.value / 4], q.value % 4);
    });
  }

  static QXC_INLINE int32x4_t total(Sum sum) { return sum; }

  template <class Block, int rows>
  static QXC_INLINE void multiply(const int8_t* bytes, const int8_t* a, int64_t stride, int64_t columns,
                                  int32x4_t (*totals)[kQuarters]) {
    for (int64_t k = 0; k < columns; k += 16) {
      int8x16_t inputs[rows];
      unrolled<rows>([&](auto m) QXC_LAMBDA { inputs[m.value] = vld1q_s8(a + m.value * stride + k); });
      unrolled<kHalfSteps * kQuarters>([&](auto i) QXC_LAMBDA {
        constexpr int q = i.value / kQuarters, quarter = i.value % kQuarters;
        const int8x16_t values = vld1q_s8(bytes + k * kTileRows + i.value * kQuarterBytes);
        unrolled<rows>([&](auto m) QXC_LAMBDA {
          int32x4_t& sum = totals[m.value][quarter];
          sum = vdotq_laneq_s32(sum, values, inputs[m.value], q);
        });
      });
    }
  }
};

}  // namespace
}  // namespace qxc
