// Rows of A to integers, and float16 to float32, with NEON. The same integers and scales as in portable C++.
#include <arm_neon.h>

#include <cfloat>

#include "kernels_neon.h"
#include "scalar.h"

namespace qxc {
namespace {

constexpr float kSmallestA16 = 0x1p-90f;  // below it, scales of 16-bit integers lose digits
constexpr int kLanes = 8;

struct Floats {
  float32x4_t low, high;
};

struct Integers {
  int32x4_t low, high;
};

// The numbers at k.. of a row of `columns`; zeros beyond its end.
inline Floats load(const float* a, int64_t k, int64_t columns) {
  if (k + kLanes <= columns) return {vld1q_f32(a + k), vld1q_f32(a + k + 4)};
  float padded[kLanes] = {};
  for (int64_t i = 0; k + i < columns; ++i) padded[i] = a[k + i];
  return {vld1q_f32(padded), vld1q_f32(padded + 4)};
}

// The largest magnitude of columns [first, last); infinite or NaN where one is, as vmaxq_f32 passes NaN on.
inline float largest_magnitude(const float* a, int64_t first, int64_t last) {
  float32x4_t largest = vdupq_n_f32(0);
  for (int64_t k = first; k < last; k += kLanes) {
    const Floats values = load(a, k, last);
    largest = vmaxq_f32(largest, vmaxq_f32(vabsq_f32(values.low), vabsq_f32(values.high)));
  }
  return vmaxvq_f32(largest);
}

inline int32x4_t nearest(float32x4_t a, float32x4_t scale, int32_t limit) {
  const int32x4_t q = vcvtnq_s32_f32(vdivq_f32(a, scale));
  return vmaxq_s32(vminq_s32(q, vdupq_n_s32(limit)), vdupq_n_s32(-limit));
}

inline Integers nearest(const Floats& a, float32x4_t scale, int32_t limit) {
  return {nearest(a.low, scale, limit), nearest(a.high, scale, limit)};
}

inline void store(int8_t* q, const Integers& values) {
  vst1_s8(q, vmovn_s16(vcombine_s16(vmovn_s32(values.low), vmovn_s32(values.high))));
}

inline void add(Integers& sum, const Integers& values) {
  sum = {vaddq_s32(sum.low, values.low), vaddq_s32(sum.high, values.high)};
}

inline int32_t total(const Integers& sum) { return vaddvq_s32(vaddq_s32(sum.low, sum.high)); }

inline int32x4_t high_byte(int32x4_t q) { return vshrq_n_s32(vaddq_s32(q, vdupq_n_s32(128)), 8); }

inline int32x4_t low_byte(int32x4_t q, int32x4_t high) {
  return vmaxq_s32(vsubq_s32(q, vshlq_n_s32(high, 8)), vdupq_n_s32(-127));
}

}  // namespace

bool quantize_a8_neon(const float* a, int64_t columns, int64_t row, const QuantizedRows& out) {
  const float largest = largest_magnitude(a, 0, columns);
  const bool fits = largest <= FLT_MAX;
  const float scale = fits ? largest / 127 : 0;
  out.scales[row] = scale;
  // rows of zeros, and rows that do not fit, become zeros
  const float32x4_t divisor = vdupq_n_f32(scale > 0 ? scale : 1);
  const int32_t limit = scale > 0 ? 127 : 0;
  for (int64_t unit = 0, k = 0; unit < out.units; ++unit) {
    Integers sum = {};
    int8_t* q = out.high + unit_offset(out, row, unit);
    for (const int64_t end = k + out.unit; k < end; k += kLanes, q += kLanes) {
      const Integers values = nearest(load(a, k, columns), divisor, limit);
      store(q, values);
      add(sum, values);
    }
    out.high_sums[row * out.units + unit] = total(sum);
    out.sums[row * out.units + unit] = static_cast<float>(total(sum));
  }
  return fits;
}

bool quantize_a16_neon(const float* a, int64_t columns, int64_t row, const QuantizedRows& out) {
  const float largest = largest_magnitude(a, 0, columns);
  const bool fits = largest == 0 || (largest >= kSmallestA16 && largest <= FLT_MAX);
  for (int64_t unit = 0, k = 0; unit < out.units; ++unit) {
    int8_t* high = out.high + unit_offset(out, row, unit);
    int8_t* low = out.low + unit_offset(out, row, unit);
    const int64_t end = k + out.unit;
    const float scale = fits ? largest_magnitude(a, k, smaller(end, columns)) / 32512 : 0;
    const bool scaled = scale >= FLT_MIN;
    const float32x4_t divisor = vdupq_n_f32(scaled ? scale : 1);
    const int32_t limit = scaled ? 32512 : 0;
    float32x4_t sum = vdupq_n_f32(0);
    Integers high_sum = {}, low_sum = {};
    for (; k < end; k += kLanes, high += kLanes, low += kLanes) {
      const Floats values = load(a, k, columns);
      sum = vaddq_f32(sum, vaddq_f32(values.low, values.high));
      const Integers q = nearest(values, divisor, limit);
      const Integers q_high = {high_byte(q.low), high_byte(q.high)};
      const Integers q_low = {low_byte(q.low, q_high.low), low_byte(q.high, q_high.high)};
      store(high, q_high);
      store(low, q_low);
      add(high_sum, q_high);
      add(low_sum, q_low);
    }
    const int64_t at = row * out.units + unit;
    out.scales[at] = scaled ? scale : 0;
    out.sums[at] = fits ? vaddvq_f32(sum) : 0;
    out.high_sums[at] = total(high_sum);
    out.low_sums[at] = total(low_sum);
  }
  return fits;
}

void widen_neon(const uint16_t* halves, int64_t count, float* values) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) vst1q_f32(values + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves + i))));
  for (; i < count; ++i) values[i] = half_to_float(halves[i]);
}

}  // namespace qxc
