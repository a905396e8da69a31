// Vectors of numbers with AVX-512, for quantize_rows.h.
#pragma once

#include <immintrin.h>

#include <cfloat>
#include <cmath>

#include "scalar.h"

namespace qxc {
namespace {

struct Avx512Vector {
  static constexpr int kLanes = 16;
  using Floats = __m512;
  using Integers = __m512i;

  static __mmask16 first_lanes(int64_t count) {
    return static_cast<__mmask16>(count >= kLanes ? 0xFFFF : (1 << count) - 1);
  }

  static Floats load(const float* a, int64_t k, int64_t columns) {
    return k < columns ? _mm512_maskz_loadu_ps(first_lanes(columns - k), a + k) : _mm512_setzero_ps();
  }

  static float largest_magnitude(const float* a, int64_t first, int64_t last) {
    Floats largest = _mm512_setzero_ps();
    __mmask16 finite = 0xFFFF;
    for (int64_t k = first; k < last; k += kLanes) {
      const Floats magnitude = _mm512_abs_ps(load(a, k, last));
      finite &= _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(FLT_MAX), _CMP_LE_OQ);
      largest = _mm512_max_ps(largest, magnitude);
    }
    return finite == 0xFFFF ? _mm512_reduce_max_ps(largest) : NAN;
  }

  static Integers nearest(Floats a, float divisor, int limit) {
    const Floats quotient = _mm512_div_ps(a, _mm512_set1_ps(divisor));
    const Integers q = _mm512_cvtps_epi32(_mm512_roundscale_ps(quotient, _MM_FROUND_TO_NEAREST_INT));
    return _mm512_max_epi32(_mm512_min_epi32(q, _mm512_set1_epi32(limit)), _mm512_set1_epi32(-limit));
  }

  static Integers high_byte(Integers q) { return _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8); }

  static Integers low_byte(Integers q, Integers high) {
    return _mm512_max_epi32(_mm512_sub_epi32(q, _mm512_slli_epi32(high, 8)), _mm512_set1_epi32(-127));
  }

  static void store(int8_t* q, Integers values) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtepi32_epi8(values));
  }

  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Integers add(Integers a, Integers b) { return _mm512_add_epi32(a, b); }
  static float total(Floats sum) { return _mm512_reduce_add_ps(sum); }
  static int32_t total(Integers sum) { return _mm512_reduce_add_epi32(sum); }

  static void widen(const uint16_t* halves, int64_t count, float* values) {
    for (int64_t i = 0; i < count; i += kLanes) {
      const __mmask16 mask = first_lanes(count - i);
      _mm512_mask_storeu_ps(values + i, mask, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, halves + i)));
    }
  }
};

}  // namespace
}  // namespace qxc
