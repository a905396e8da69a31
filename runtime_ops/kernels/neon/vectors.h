// Vectors of numbers with NEON, for quantize_rows.h.
#pragma once

#include <arm_neon.h>

#include "scalar.h"

namespace qxc {
namespace {

struct NeonVector {
  static constexpr int kLanes = 4;
  using Floats = float32x4_t;
  using Integers = int32x4_t;

  static Floats load(const float* a, int64_t k, int64_t columns) {
    if (k + kLanes <= columns) return vld1q_f32(a + k);
    float padded[kLanes] = {};
    for (int64_t i = 0; k + i < columns; ++i) padded[i] = a[k + i];
    return vld1q_f32(padded);
  }

  // vmaxq_f32 passes NaN on.
  static float largest_magnitude(const float* a, int64_t first, int64_t last) {
    Floats largest = {};
    for (int64_t k = first; k < last; k += kLanes) largest = vmaxq_f32(largest, vabsq_f32(load(a, k, last)));
    return vmaxvq_f32(largest);
  }

  static Integers nearest(Floats a, float divisor, int limit) {
    const Integers q = vcvtnq_s32_f32(vdivq_f32(a, vdupq_n_f32(divisor)));
    return vmaxq_s32(vminq_s32(q, vdupq_n_s32(limit)), vdupq_n_s32(-limit));
  }

  static Integers high_byte(Integers q) { return vshrq_n_s32(vaddq_s32(q, vdupq_n_s32(128)), 8); }

  static Integers low_byte(Integers q, Integers high) {
    return vmaxq_s32(vsubq_s32(q, vshlq_n_s32(high, 8)), vdupq_n_s32(-127));
  }

  static void store(int8_t* q, Integers values) {
    const int16x4_t words = vmovn_s32(values);
    const int32_t four = vget_lane_s32(vreinterpret_s32_s8(vmovn_s16(vcombine_s16(words, words))), 0);
    std::memcpy(q, &four, sizeof four);
  }

  static Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
  static Integers add(Integers a, Integers b) { return vaddq_s32(a, b); }
  static float total(Floats sum) { return vaddvq_f32(sum); }
  static int32_t total(Integers sum) { return vaddvq_s32(sum); }

  static void widen(const uint16_t* halves, int64_t count, float* values) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      vst1q_f32(values + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves + i))));
    }
    for (; i < count; ++i) values[i] = half_to_float(halves[i]);
  }
};

}  // namespace
}  // namespace qxc
