// Rows of A to integers, with AVX2. The same numbers as in portable C++.
#include "quantize_avx2.h"

#include <immintrin.h>

#include <cfloat>

#include "scalar.h"

namespace qxc {
namespace {

constexpr float kSmallestA16 = 0x1p-90f;  // below it, scales of 16-bit integers lose digits
constexpr int kLanes = 8;

// The numbers at k.. of a row of `columns`; zeros beyond its end.
inline __m256 load(const float* a, int64_t k, int64_t columns) {
  if (k + kLanes <= columns) return _mm256_loadu_ps(a + k);
  alignas(32) float padded[kLanes] = {};
  for (int64_t i = 0; k + i < columns; ++i) padded[i] = a[k + i];
  return _mm256_load_ps(padded);
}

// The largest magnitude of columns [first, last); negative where one is NaN or infinite.
inline float largest_magnitude(const float* a, int64_t first, int64_t last) {
  __m256 largest = _mm256_setzero_ps();
  __m256 finite = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
  for (int64_t k = first; k < last; k += kLanes) {
    const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), load(a, k, last));
    finite = _mm256_and_ps(finite, _mm256_cmp_ps(magnitude, _mm256_set1_ps(FLT_MAX), _CMP_LE_OQ));
    largest = _mm256_max_ps(largest, magnitude);
  }
  if (_mm256_movemask_ps(finite) != 0xFF) return -1;
  alignas(32) float lanes[kLanes];
  _mm256_store_ps(lanes, largest);
  float result = 0;
  for (const float lane : lanes) result = lane > result ? lane : result;
  return result;
}

inline __m256i nearest(__m256 a, __m256 scale, int limit) {
  const __m256 rounded = _mm256_round_ps(_mm256_div_ps(a, scale), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256i q = _mm256_cvtps_epi32(rounded);
  return _mm256_max_epi32(_mm256_min_epi32(q, _mm256_set1_epi32(limit)), _mm256_set1_epi32(-limit));
}

inline void store(int8_t* q, __m256i values) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(q), _mm_packs_epi16(words, words));
}

inline float sum_of(__m256 values) {
  alignas(32) float lanes[kLanes];
  _mm256_store_ps(lanes, values);
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  return sum;
}

inline int32_t sum_of(__m256i values) {
  alignas(32) int32_t lanes[kLanes];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), values);
  int32_t sum = 0;
  for (const int32_t lane : lanes) sum += lane;
  return sum;
}

}  // namespace

bool quantize_a8_avx2(const float* a, int64_t columns, int64_t row, const QuantizedRows& out) {
  const float largest = largest_magnitude(a, 0, columns);
  const bool fits = largest >= 0;
  const float scale = fits ? largest / 127 : 0;
  out.scales[row] = scale;
  // rows of zeros, and rows that do not fit, become zeros
  const __m256 divisor = _mm256_set1_ps(scale > 0 ? scale : 1);
  const int limit = scale > 0 ? 127 : 0;
  for (int64_t unit = 0, k = 0; unit < out.units; ++unit) {
    __m256i sum = _mm256_setzero_si256();
    int8_t* q = out.high + unit_offset(out, row, unit);
    for (const int64_t end = k + out.unit; k < end; k += kLanes, q += kLanes) {
      const __m256i values = nearest(load(a, k, columns), divisor, limit);
      store(q, values);
      sum = _mm256_add_epi32(sum, values);
    }
    const int32_t total = sum_of(sum);
    out.high_sums[row * out.units + unit] = total;
    out.sums[row * out.units + unit] = static_cast<float>(total);
  }
  return fits;
}

bool quantize_a16_avx2(const float* a, int64_t columns, int64_t row, const QuantizedRows& out) {
  const float largest = largest_magnitude(a, 0, columns);
  const bool fits = largest == 0 || largest >= kSmallestA16;
  for (int64_t unit = 0, k = 0; unit < out.units; ++unit) {
    int8_t* high = out.high + unit_offset(out, row, unit);
    int8_t* low = out.low + unit_offset(out, row, unit);
    const int64_t end = k + out.unit;
    const float scale = fits ? largest_magnitude(a, k, smaller(end, columns)) / 32512 : 0;
    const bool scaled = scale >= FLT_MIN;
    const __m256 divisor = _mm256_set1_ps(scaled ? scale : 1);
    const int limit = scaled ? 32512 : 0;
    __m256 sum = _mm256_setzero_ps();
    __m256i high_sum = _mm256_setzero_si256(), low_sum = _mm256_setzero_si256();
    for (; k < end; k += kLanes, high += kLanes, low += kLanes) {
      const __m256 values = load(a, k, columns);
      sum = _mm256_add_ps(sum, values);
      const __m256i q = nearest(values, divisor, limit);
      const __m256i q_high = _mm256_srai_epi32(_mm256_add_epi32(q, _mm256_set1_epi32(128)), 8);
      const __m256i q_low =
          _mm256_max_epi32(_mm256_sub_epi32(q, _mm256_slli_epi32(q_high, 8)), _mm256_set1_epi32(-127));
      store(high, q_high);
      store(low, q_low);
      high_sum = _mm256_add_epi32(high_sum, q_high);
      low_sum = _mm256_add_epi32(low_sum, q_low);
    }
    const int64_t at = row * out.units + unit;
    out.scales[at] = scaled ? scale : 0;
    out.sums[at] = fits ? sum_of(sum) : 0;
    out.high_sums[at] = sum_of(high_sum);
    out.low_sums[at] = sum_of(low_sum);
  }
  return fits;
}

void widen_avx2(const uint16_t* halves, int64_t count, float* values) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + i));
    _mm256_storeu_ps(values + i, _mm256_cvtph_ps(eight));
  }
  for (; i < count; ++i) values[i] = half_to_float(halves[i]);
}

}  // namespace qxc
