// Vectors of numbers with AVX2, for quantize_rows.h.
#pragma once

#include <immintrin.h>

#include <cfloat>
#include <cmath>

#include "scalar.h"

namespace qxc {
namespace {

struct Avx2Vector {
  static constexpr int kLanes = 8;
  using Floats = __m256;
  using Integers = __m256i;

  static Floats load(const float* a, int64_t k, int64_t columns) {
    if (k + kLanes <= columns) return _mm256_loadu_ps(a + k);
    alignas(32) float padded[kLanes] = {};
    for (int64_t i = 0; k + i < columns; ++i) padded[i] = a[k + i];
    return _mm256_load_ps(padded);
  }

  static float largest_magnitude(const float* a, int64_t first, int64_t last) {
    Floats largest = _mm256_setzero_ps();
    Floats finite = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    for (int64_t k = first; k < last; k += kLanes) {
      const Floats magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), load(a, k, last));
      finite = _mm256_and_ps(finite, _mm256_cmp_ps(magnitude, _mm256_set1_ps(FLT_MAX), _CMP_LE_OQ));
      largest = _mm256_max_ps(largest, magnitude);
    }
    if (_mm256_movemask_ps(finite) != 0xFF) return NAN;
    alignas(32) float lanes[kLanes];
    _mm256_store_ps(lanes, largest);
    float result = 0;
    for (const float lane : lanes) result = lane > result ? lane : result;
    return result;
  }

  static Integers nearest(Floats a, float divisor, int limit) {
    const Floats quotient = _mm256_div_ps(a, _mm256_set1_ps(divisor));
    const Integers q = _mm256_cvtps_epi32(_mm256_round_ps(quotient, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    return _mm256_max_epi32(_mm256_min_epi32(q, _mm256_set1_epi32(limit)), _mm256_set1_epi32(-limit));
  }

  static Integers high_byte(Integers q) { return _mm256_srai_epi32(_mm256_add_epi32(q, _mm256_set1_epi32(128)), 8); }

  static Integers low_byte(Integers q, Integers high) {
    return _mm256_max_epi32(_mm256_sub_epi32(q, _mm256_slli_epi32(high, 8)), _mm256_set1_epi32(-127));
  }

  static void store(int8_t* q, Integers values) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(q), _mm_packs_epi16(words, words));
  }

  static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Integers add(Integers a, Integers b) { return _mm256_add_epi32(a, b); }

  static float total(Floats sum) {
    alignas(32) float lanes[kLanes];
    _mm256_store_ps(lanes, sum);
    float total = 0;
    for (const float lane : lanes) total += lane;
    return total;
  }

  static int32_t total(Integers sum) {
    alignas(32) int32_t lanes[kLanes];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sum);
    int32_t total = 0;
    for (const int32_t lane : lanes) total += lane;
    return total;
  }

  static void widen(const uint16_t* halves, int64_t count, float* values) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + i));
      _mm256_storeu_ps(values + i, _mm256_cvtph_ps(eight));
    }
    for (; i < count; ++i) values[i] = half_to_float(halves[i]);
  }
};

}  // namespace
}  // namespace qxc
