// Products of bytes added up with NEON alone: in 16 bits as long as they fit, then in 32.
#pragma once

#include "neon/blocks.h"

namespace qxc {
namespace {

struct DotNeon : UnitOfSteps {
  static constexpr int kRegistersPerSum = 2;
  static constexpr int kMostRows = 2;

  // Two lanes a row: rows 0 and 1, 2 and 3.
  struct Sum {
    int32x4_t low, high;
  };

  // A block's inputs: the four of a step in every lane.
  struct Inputs {
    int8x16_t steps[kSteps];

    QXC_INLINE explicit Inputs(const int8_t* a) {
      unrolled<kSteps>([&](auto q)
                           QXC_LAMBDA { steps[q.value] = broadcast<q.value % 4>(vld1q_s8(a + q.value / 4 * 16)); });
    }
  };

  template <int lane>
  static QXC_INLINE int8x16_t broadcast(int8x16_t a) {
    return vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(a), lane));
  }

  // How many products of a byte of class c fit into 16 bits.
  template <class Block>
  static constexpr int longest_chain(int c) {
    return 32767 / (127 * Block::largest(c));
  }

  struct Chain {
    int16x8_t low, high;
    int length = 0;

    QXC_INLINE void add(int8x16_t values, int8x16_t inputs, int longest, Sum& sum) {
      if (length == 0) {
        low = vmull_s8(vget_low_s8(values), vget_low_s8(inputs));
        high = vmull_high_s8(values, inputs);
      } else {
        low = vmlal_s8(low, vget_low_s8(values), vget_low_s8(inputs));
        high = vmlal_high_s8(high, values, inputs);
      }
      if (++length == longest) end(sum);
    }

    QXC_INLINE void end(Sum& sum) {
      if (length == 0) return;
      sum.low = vpadalq_s16(sum.low, low);
      sum.high = vpadalq_s16(sum.high, high);
      length = 0;
    }
  };

  template <class Block>
  static QXC_INLINE void add(const int8x16_t* values, const Inputs& inputs, Sum* sums) {
    unrolled<Block::kClasses>([&](auto c) QXC_LAMBDA {
      Chain chain;
      unrolled<kSteps>([&](auto q) QXC_LAMBDA {
        if constexpr (Block::class_of(q.value) == c.value) {
          chain.add(values[q.value], inputs.steps[q.value], longest_chain<Block>(c.value), sums[c.value]);
        }
      });
      chain.end(sums[c.value]);
    });
  }

  static QXC_INLINE int32x4_t total(const Sum& sum) { return vpaddq_s32(sum.low, sum.high); }

  template <class Block, int rows>
  static QXC_INLINE void multiply(const int8_t* bytes, const int8_t* a, int64_t stride, int64_t columns,
                                  int32x4_t (*totals)[kQuarters]) {
    Sum sums[rows][kQuarters] = {};
    for (int64_t k = 0; k < columns; k += 16) {
      int8x16_t inputs[rows][kHalfSteps];
      unrolled<rows * kHalfSteps>([&](auto i) QXC_LAMBDA {
        constexpr int m = i.value / kHalfSteps, q = i.value % kHalfSteps;
        inputs[m][q] = broadcast<q>(vld1q_s8(a + m * stride + k));
      });
      unrolled<kQuarters>([&](auto quarter) QXC_LAMBDA {
        unrolled<rows>([&](auto m) QXC_LAMBDA {
          Chain chain;
          unrolled<kHalfSteps>([&](auto q) QXC_LAMBDA {
            const int8x16_t values = vld1q_s8(bytes + k * kTileRows + q.value * kLineBytes + quarter.value * 16);
            // one step's class is as good as another's: they have been shifted back
            chain.add(values, inputs[m.value][q.value], longest_chain<Block>(0), sums[m.value][quarter.value]);
          });
          chain.end(sums[m.value][quarter.value]);
        });
      });
    }
    unrolled<rows * kQuarters>([&](auto i) QXC_LAMBDA {
      constexpr int m = i.value / kQuarters, quarter = i.value % kQuarters;
      totals[m][quarter] = vaddq_s32(totals[m][quarter], total(sums[m][quarter]));
    });
  }
};

}  // namespace
}  // namespace qxc
