// Rows of A to integers, with AVX-512. The same numbers as in portable C++.
#include "quantize_avx512.h"

#include <immintrin.h>

#include <cfloat>

#include "scalar.h"

namespace qxc {
namespace {

constexpr float kSmallestA16 = 0x1p-90f;  // below it, scales of 16-bit integers lose digits

inline __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>(count >= 16 ? 0xFFFF : (1 << count) - 1); }

// The numbers at k.. of a row of `columns`; zeros beyond its end.
inline __m512 load(const float* a, int64_t k, int64_t columns) {
  return k < columns ? _mm512_maskz_loadu_ps(first_lanes(columns - k), a + k) : _mm512_setzero_ps();
}

// The largest magnitude of columns [first, last); negative where one is NaN or infinite.
inline float largest_magnitude(const float* a, int64_t first, int64_t last) {
  __m512 largest = _mm512_setzero_ps();
  __mmask16 finite = 0xFFFF;
  for (int64_t k = first; k < last; k += 16) {
    const __m512 magnitude = _mm512_abs_ps(load(a, k, last));
    finite &= _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(FLT_MAX), _CMP_LE_OQ);
    largest = _mm512_max_ps(largest, magnitude);
  }
  return finite == 0xFFFF ? _mm512_reduce_max_ps(largest) : -1;
}

inline __m512i nearest(__m512 a, __m512 scale, int limit) {
  const __m512i q = _mm512_cvtps_epi32(_mm512_roundscale_ps(_mm512_div_ps(a, scale), _MM_FROUND_TO_NEAREST_INT));
  return _mm512_max_epi32(_mm512_min_epi32(q, _mm512_set1_epi32(limit)), _mm512_set1_epi32(-limit));
}

inline void store(int8_t* q, __m512i values) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtepi32_epi8(values));
}

}  // namespace

bool quantize_a8_avx512(const float* a, int64_t columns, int64_t row, const QuantizedRows& out) {
  const float largest = largest_magnitude(a, 0, columns);
  const bool fits = largest >= 0;
  const float scale = fits ? largest / 127 : 0;
  out.scales[row] = scale;
  // rows of zeros, and rows that do not fit, become zeros
  const __m512 divisor = _mm512_set1_ps(scale > 0 ? scale : 1);
  const int limit = scale > 0 ? 127 : 0;
  for (int64_t unit = 0, k = 0; unit < out.units; ++unit) {
    __m512i sum = _mm512_setzero_si512();
    int8_t* q = out.high + unit_offset(out, row, unit);
    for (const int64_t end = k + out.unit; k < end; k += 16, q += 16) {
      const __m512i values = nearest(load(a, k, columns), divisor, limit);
      store(q, values);
      sum = _mm512_add_epi32(sum, values);
    }
    const int32_t total = _mm512_reduce_add_epi32(sum);
    out.high_sums[row * out.units + unit] = total;
    out.sums[row * out.units + unit] = static_cast<float>(total);
  }
  return fits;
}

bool quantize_a16_avx512(const float* a, int64_t columns, int64_t row, const QuantizedRows& out) {
  const float largest = largest_magnitude(a, 0, columns);
  const bool fits = largest == 0 || largest >= kSmallestA16;
  for (int64_t unit = 0, k = 0; unit < out.units; ++unit) {
    int8_t* high = out.high + unit_offset(out, row, unit);
    int8_t* low = out.low + unit_offset(out, row, unit);
    const int64_t end = k + out.unit;
    const float scale = fits ? largest_magnitude(a, k, smaller(end, columns)) / 32512 : 0;
    const bool scaled = scale >= FLT_MIN;
    const __m512 divisor = _mm512_set1_ps(scaled ? scale : 1);
    const int limit = scaled ? 32512 : 0;
    __m512 sum = _mm512_setzero_ps();
    __m512i high_sum = _mm512_setzero_si512(), low_sum = _mm512_setzero_si512();
    for (; k < end; k += 16, high += 16, low += 16) {
      const __m512 values = load(a, k, columns);
      sum = _mm512_add_ps(sum, values);
      const __m512i q = nearest(values, divisor, limit);
      const __m512i q_high = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
      const __m512i q_low =
          _mm512_max_epi32(_mm512_sub_epi32(q, _mm512_slli_epi32(q_high, 8)), _mm512_set1_epi32(-127));
      store(high, q_high);
      store(low, q_low);
      high_sum = _mm512_add_epi32(high_sum, q_high);
      low_sum = _mm512_add_epi32(low_sum, q_low);
    }
    const int64_t at = row * out.units + unit;
    out.scales[at] = scaled ? scale : 0;
    out.sums[at] = fits ? _mm512_reduce_add_ps(sum) : 0;
    out.high_sums[at] = _mm512_reduce_add_epi32(high_sum);
    out.low_sums[at] = _mm512_reduce_add_epi32(low_sum);
  }
  return fits;
}

void widen_avx512(const uint16_t* halves, int64_t count, float* values) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = first_lanes(count - i);
    _mm512_mask_storeu_ps(values + i, mask, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, halves + i)));
  }
}

}  // namespace qxc
