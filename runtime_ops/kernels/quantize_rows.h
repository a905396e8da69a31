// Rows of A to integers. A `Vector` policy (vectors.h) is what an instruction set does with `kLanes` numbers at once:
//   Floats, Integers         a vector of them; all zeros as `{}`
//   load(a, k, columns)      the numbers at k.. of a row, zeros beyond its end
//   largest_magnitude(a, first, last)   of those columns; infinite or NaN where one is
//   nearest(a, divisor, limit)          a / divisor, rounded to the nearest (ties to even), within -limit..limit
//   high_byte(q), low_byte(q, high)     q = 256 * high + low, but low is never -128
//   store(q, values)         as bytes
//   add, total               of lanes, and over them
#pragma once

#include <cfloat>

#include "kernels.h"
#include "scalar.h"

namespace qxc {
namespace {

constexpr float kSmallestA16 = 0x1p-90f;  // below it, scales of 16-bit integers lose digits

template <class Vector>
bool quantize_a8(const float* a, int64_t columns, int64_t row, const QuantizedRows& out) {
  const float largest = Vector::largest_magnitude(a, 0, columns);
  const bool fits = largest <= FLT_MAX;
  const float scale = fits ? largest / 127 : 0;
  out.scales[row] = scale;
  // rows of zeros, and rows that do not fit, become zeros
  const float divisor = scale > 0 ? scale : 1;
  const int limit = scale > 0 ? 127 : 0;
  for (int64_t unit = 0, k = 0; unit < out.units; ++unit) {
    typename Vector::Integers sum = {};
    int8_t* q = out.high + unit_offset(out, row, unit);
    for (const int64_t end = k + out.unit; k < end; k += Vector::kLanes, q += Vector::kLanes) {
      const auto values = Vector::nearest(Vector::load(a, k, columns), divisor, limit);
      Vector::store(q, values);
      sum = Vector::add(sum, values);
    }
    const int64_t at = row * out.units + unit;
    out.high_sums[at] = Vector::total(sum);
    out.sums[at] = static_cast<float>(out.high_sums[at]);
  }
  return fits;
}

template <class Vector>
bool quantize_a16(const float* a, int64_t columns, int64_t row, const QuantizedRows& out) {
  const float largest = Vector::largest_magnitude(a, 0, columns);
  const bool fits = largest == 0 || (largest >= kSmallestA16 && largest <= FLT_MAX);
  for (int64_t unit = 0, k = 0; unit < out.units; ++unit) {
    int8_t* high = out.high + unit_offset(out, row, unit);
    int8_t* low = out.low + unit_offset(out, row, unit);
    const int64_t end = k + out.unit;
    const float scale = fits ? Vector::largest_magnitude(a, k, smaller(end, columns)) / 32512 : 0;
    const bool scaled = scale >= FLT_MIN;
    const float divisor = scaled ? scale : 1;
    const int limit = scaled ? 32512 : 0;
    typename Vector::Floats sum = {};
    typename Vector::Integers high_sum = {}, low_sum = {};
    for (; k < end; k += Vector::kLanes, high += Vector::kLanes, low += Vector::kLanes) {
      const auto values = Vector::load(a, k, columns);
      const auto q = Vector::nearest(values, divisor, limit);
      const auto q_high = Vector::high_byte(q);
      const auto q_low = Vector::low_byte(q, q_high);
      Vector::store(high, q_high);
      Vector::store(low, q_low);
      sum = Vector::add(sum, values);
      high_sum = Vector::add(high_sum, q_high);
      low_sum = Vector::add(low_sum, q_low);
    }
    const int64_t at = row * out.units + unit;
    out.scales[at] = scaled ? scale : 0;
    out.sums[at] = fits ? Vector::total(sum) : 0;
    out.high_sums[at] = Vector::total(high_sum);
    out.low_sums[at] = Vector::total(low_sum);
  }
  return fits;
}

}  // namespace
}  // namespace qxc
