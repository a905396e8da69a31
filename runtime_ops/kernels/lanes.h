// Floats by the vector, as many as a register of the instruction set holds, in the compiler's vector extension.
// Internal linkage: see scalar.h.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <utility>

namespace qxc {
namespace {

#if defined(__AVX512BW__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Integers __attribute__((vector_size(4 * kLanes)));
typedef int32_t SignedIntegers __attribute__((vector_size(4 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef int16_t Shorts __attribute__((vector_size(4 * kLanes)));  // two where there is one float

inline Floats load(const float* from) {
  Floats values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

inline Shorts load_shorts(const int16_t* from) {
  Shorts values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

inline void store(int16_t* to, Shorts values) { std::memcpy(to, &values, sizeof values); }

inline Bytes load_bytes(const uint8_t* from) {
  Bytes values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

// gcc 12 converts bytes lane by lane where it is not told the instruction; and it warns of what its conversions without
// a mask leave undefined, so that they have one, of all lanes.
inline Floats widened(Bytes values) {
#if defined(__AVX512BW__)
  return __builtin_convertvector((SignedIntegers)_mm512_maskz_cvtepu8_epi32(0xFFFF, (__m128i)values), Floats);
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)values)));
#elif defined(__ARM_NEON)
  uint32_t bits;
  std::memcpy(&bits, &values, sizeof bits);
  const uint16x8_t words = vmovl_u8(vcreate_u8(bits));
  return (Floats)vcvtq_f32_u32(vmovl_u16(vget_low_u16(words)));
#else
  return __builtin_convertvector(__builtin_convertvector(values, SignedIntegers), Floats);
#endif
}

// Floats of 0 to less than 256, without their fractions.
inline Bytes narrowed(Floats values) {
#if defined(__AVX512BW__)
  return (Bytes)_mm512_maskz_cvtepi32_epi8(0xFFFF, (__m512i) __builtin_convertvector(values, SignedIntegers));
#else
  return __builtin_convertvector(__builtin_convertvector(values, SignedIntegers), Bytes);
#endif
}

inline Floats splat(float value) { return value - Floats{}; }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }  // b where one is NaN

// a b + c, rounded once where the instruction set can.
inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512BW__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__ARM_NEON)
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

// As many bytes as a vector has shorts.
inline Shorts widened_to_shorts(const uint8_t* from) {
#if defined(__AVX512BW__)
  return (Shorts)_mm512_maskz_cvtepu8_epi16(~__mmask32{0}, _mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
  return (Shorts)_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)from));
#elif defined(__ARM_NEON)
  return (Shorts)vmovl_u8(vld1_u8(from));
#else
  Shorts values;
  for (int i = 0; i < 2 * kLanes; ++i) values[i] = from[i];
  return values;
#endif
}

// `kLanes` bytes of each, in turn.
inline Shorts widened_in_turn(const uint8_t* a, const uint8_t* b) {
#if defined(__AVX512BW__)
  const __m128i x = _mm_loadu_si128((const __m128i*)a), y = _mm_loadu_si128((const __m128i*)b);
  const __m256i both = _mm256_set_m128i(_mm_unpackhi_epi8(x, y), _mm_unpacklo_epi8(x, y));
  return (Shorts)_mm512_maskz_cvtepu8_epi16(~__mmask32{0}, both);
#elif defined(__AVX2__)
  const __m128i x = _mm_loadl_epi64((const __m128i*)a), y = _mm_loadl_epi64((const __m128i*)b);
  return (Shorts)_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(x, y));
#else
  Shorts values;
  for (int i = 0; i < kLanes; ++i) {
    values[2 * i] = a[i];
    values[2 * i + 1] = b[i];
  }
  return values;
#endif
}

// Sums of neighbours' products, which must fit.
inline SignedIntegers add_products(Shorts a, Shorts b, SignedIntegers sums) {
#if defined(__AVX512BW__) && defined(__AVX512VNNI__)
  return (SignedIntegers)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return sums + (SignedIntegers)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__ARM_NEON)
  const int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
  const int32x4_t low = vmull_s16(vget_low_s16(x), vget_low_s16(y)), high = vmull_high_s16(x, y);
  return sums + (SignedIntegers)vpaddq_s32(low, high);
#else
  for (int i = 0; i < kLanes; ++i) sums[i] += a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
  return sums;
#endif
}

template <class Order, class V, int... lane>
inline V picked(V a, V b, std::integer_sequence<int, lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Order::at(lane)...);
#else
  return __builtin_shuffle(a, b, Integers{Order::at(lane)...});
#endif
}

// Lanes of a and b, which are numbered on from those of a: lane i is `Order::at(i)`.
template <class Order, class V>
inline V picked(V a, V b) {
  return picked<Order>(a, b, std::make_integer_sequence<int, kLanes>());
}

template <int first>
struct EverySecond {
  static constexpr int at(int lane) { return 2 * lane + first; }
};
template <int first>
struct InTurn {
  static constexpr int at(int lane) { return first + lane / 2 + lane % 2 * kLanes; }
};
template <int distance>
struct Exchanged {
  static constexpr int at(int lane) { return lane ^ distance; }
};

constexpr float kIntegerBits = 0x1.8p23f;  // added to less than 2^22, it leaves the nearest integer in the low bits

inline Integers bits_of(Floats values) {
  Integers bits;
  std::memcpy(&bits, &values, sizeof bits);
  return bits;
}

// The nearest integers to the numbers of both, one after the other.
inline Shorts nearest_shorts(Floats low, Floats high) {
  const Integers a = bits_of(low + kIntegerBits), b = bits_of(high + kIntegerBits);
  return (Shorts)((picked<EverySecond<0>>(a, b) & 0xFFFF) | picked<EverySecond<1>>(a, b) << 16);
}

// Lane i is the sum of the lanes of vectors[i], which are overwritten.
template <int count = kLanes, class V>
inline V totals(V (&vectors)[kLanes]) {
#pragma GCC unroll 8
  for (int i = 0; i < count / 2; ++i) {
    const V a = vectors[2 * i], b = vectors[2 * i + 1];
    vectors[i] = picked<EverySecond<0>>(a, b) + picked<EverySecond<1>>(a, b);
  }
  if constexpr (count > 2) return totals<count / 2>(vectors);
  return vectors[0];
}

// Rows become columns.
inline void transpose(Floats (&rows)[kLanes]) {
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    Floats mixed[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      const Floats a = rows[i], b = rows[i + kLanes / 2];
      mixed[2 * i] = picked<InTurn<0>>(a, b);
      mixed[2 * i + 1] = picked<InTurn<kLanes / 2>>(a, b);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = mixed[i];
  }
}

// Of all lanes: `fold` of two vectors, by halves.
template <int distance = kLanes / 2, class Fold>
inline float folded(Floats values, Fold fold) {
  values = fold(values, picked<Exchanged<distance>>(values, values));
  if constexpr (distance > 1) return folded<distance / 2>(values, fold);
  return values[0];
}

inline float total(Floats values) {
  return folded(values, [](Floats a, Floats b) { return a + b; });
}

inline float largest(Floats values) { return folded(values, larger); }

constexpr float kLeastExponent = -87;  // e^-87 is still a normal number

// e^x to 2e-7, for x of at most 0; of less than -87, such as minus infinity, 0.
inline Floats exp_of_negative(Floats x) {
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693145752f, kLn2Low = 1.42860677e-6f;  // the high part times any n is exact
  const Floats t = x < kLeastExponent ? splat(kLeastExponent) : x;
  const Floats shifted = multiply_add(t, splat(kLog2E), splat(kIntegerBits));
  const Floats n = shifted - kIntegerBits;
  const Floats r = multiply_add(n, splat(-kLn2Low), multiply_add(n, splat(-kLn2High), t));
  Floats series = splat(1.0f / 5040);  // Taylor's, for |r| <= ln(2) / 2
  for (const float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    series = multiply_add(series, r, splat(coefficient));
  }
  const Integers exponent = (bits_of(shifted) + 127) << 23;  // the bits above n are lost
  Floats power;
  std::memcpy(&power, &exponent, sizeof power);
  return x < kLeastExponent ? Floats{} : series * power;
}

inline Floats tanh_of(Floats x) {
  const Floats magnitude = x < 0.0f ? -x : x;
  const Floats e = exp_of_negative(-2.0f * magnitude);
  const Floats far = (1.0f - e) / (1.0f + e), square = x * x;
  Floats series = splat(-17.0f / 315);  // Taylor's, where 1 - e would lose digits
  for (const float coefficient : {2.0f / 15, -1.0f / 3, 1.0f})
    series = multiply_add(series, square, splat(coefficient));
  return magnitude < 0.25f ? x * series : x < 0.0f ? -far : far;
}

}  // namespace
}  // namespace qxc
