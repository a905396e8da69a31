// Numbers one by one, in portable C++, for quantize_rows.h.
#pragma once

#include <cfloat>
#include <cmath>

#include "scalar.h"

namespace qxc {
namespace {

struct PortableVector {
  static constexpr int kLanes = 1;
  using Floats = float;
  using Integers = int32_t;

  static float load(const float* a, int64_t k, int64_t columns) { return k < columns ? a[k] : 0; }

  static float largest_magnitude(const float* a, int64_t first, int64_t last) {
    float largest = 0;
    for (int64_t k = first; k < last; ++k) {
      const float magnitude = std::fabs(a[k]);
      if (!(magnitude <= FLT_MAX)) return NAN;
      largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
  }

  static int32_t nearest(float a, float divisor, int limit) {
    const int32_t q = static_cast<int32_t>(std::nearbyint(limit ? a / divisor : 0.0f));
    return q > limit ? limit : q < -limit ? -limit : q;
  }

  static int32_t high_byte(int32_t q) { return (q + 128) >> 8; }
  static int32_t low_byte(int32_t q, int32_t high) { return q - 256 * high < -127 ? -127 : q - 256 * high; }
  static void store(int8_t* q, int32_t value) { *q = static_cast<int8_t>(value); }
  static float add(float a, float b) { return a + b; }
  static int32_t add(int32_t a, int32_t b) { return a + b; }
  static float total(float sum) { return sum; }
  static int32_t total(int32_t sum) { return sum; }

  static void widen(const uint16_t* halves, int64_t count, float* values) {
    for (int64_t i = 0; i < count; ++i) values[i] = half_to_float(halves[i]);
  }
};

}  // namespace
}  // namespace qxc
