// Rows of A to integers, in portable C++.
#pragma once

#include <cfloat>
#include <cmath>

#include "kernels.h"
#include "scalar.h"

namespace qxc {
namespace {

constexpr float kSmallestA16 = 0x1p-90f;  // below it, scales of 16-bit integers lose digits

// NaN where any number is NaN or infinite.
inline float largest_magnitude(const float* a, int64_t count) {
  float largest = 0;
  for (int64_t k = 0; k < count; ++k) {
    const float magnitude = std::fabs(a[k]);
    if (!(magnitude <= FLT_MAX)) return NAN;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

inline int nearest(float value, int limit) {
  const int rounded = static_cast<int>(std::nearbyint(value));
  return rounded > limit ? limit : rounded < -limit ? -limit : rounded;
}

inline void zero_row(int64_t row, const QuantizedRows& out) {
  const size_t unit = static_cast<size_t>(out.unit), units = static_cast<size_t>(out.units);
  for (int64_t u = 0; u < out.units; ++u) {
    std::memset(out.high + unit_offset(out, row, u), 0, unit);
    if (out.low) std::memset(out.low + unit_offset(out, row, u), 0, unit);
  }
  std::memset(out.high_sums + row * out.units, 0, units * sizeof(int32_t));
  std::memset(out.sums + row * out.units, 0, units * sizeof(float));
  if (out.low) std::memset(out.low_sums + row * out.units, 0, units * sizeof(int32_t));
  std::memset(out.scales + (out.low ? row * out.units : row), 0, (out.low ? units : 1) * sizeof(float));
}

inline bool quantize_a8_portable(const float* a, int64_t columns, int64_t row, const QuantizedRows& out) {
  zero_row(row, out);
  const float largest = largest_magnitude(a, columns);
  if (!(largest >= 0)) return false;
  const float scale = largest / 127;
  if (scale == 0) return true;
  out.scales[row] = scale;
  for (int64_t k = 0; k < columns; ++k) {
    const int q = nearest(a[k] / scale, 127);
    const int64_t unit = k / out.unit;
    out.high[unit_offset(out, row, unit) + k % out.unit] = static_cast<int8_t>(q);
    out.high_sums[row * out.units + unit] += q;
    out.sums[row * out.units + unit] += static_cast<float>(q);
  }
  return true;
}

inline bool quantize_a16_portable(const float* a, int64_t columns, int64_t row, const QuantizedRows& out) {
  zero_row(row, out);
  const float largest = largest_magnitude(a, columns);
  if (largest == 0) return true;
  if (!(largest >= kSmallestA16)) return false;
  for (int64_t unit = 0; unit < out.units; ++unit) {
    const int64_t first = unit * out.unit;
    const int64_t last = smaller(columns, first + out.unit);
    for (int64_t k = first; k < last; ++k) out.sums[row * out.units + unit] += a[k];
    const float scale = largest_magnitude(a + first, last - first) / 32512;
    if (scale < FLT_MIN) continue;
    out.scales[row * out.units + unit] = scale;
    for (int64_t k = first; k < last; ++k) {
      const int q = nearest(a[k] / scale, 32512);
      const int high = (q + 128) >> 8;
      const int low = q - 256 * high < -127 ? -127 : q - 256 * high;
      out.high[unit_offset(out, row, unit) + k - first] = static_cast<int8_t>(high);
      out.low[unit_offset(out, row, unit) + k - first] = static_cast<int8_t>(low);
      out.high_sums[row * out.units + unit] += high;
      out.low_sums[row * out.units + unit] += low;
    }
  }
  return true;
}

}  // namespace
}  // namespace qxc
