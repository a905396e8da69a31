// Scalar helpers. Everything here has internal linkage: files compiled for different processors must not share code.
#pragma once

#include <cstdint>
#include <cstring>

#include "tile16.h"

namespace qxc {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Where a row's numbers of one unit lie in `high` and `low`.
inline int64_t unit_offset(const QuantizedRows& a, int64_t row, int64_t unit) { return (unit * a.rows + row) * a.unit; }

inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Number `at` of halves that may lie at any address.
inline uint16_t half_at(const uint16_t* halves, int64_t at) {
  uint16_t half;
  std::memcpy(&half, reinterpret_cast<const char*>(halves) + at * 2, sizeof half);
  return half;
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7FFFu;
  uint32_t bits;
  if (magnitude >= 0x7C00u) {  // infinity or NaN
    bits = 0x7F800000u | (magnitude & 0x3FFu) << 13;
  } else if (magnitude >= 0x400u) {
    bits = (magnitude << 13) + (112u << 23);
  } else {  // zero or subnormal: a multiple of 2^-24
    bits = bits_of_float(static_cast<float>(magnitude) * 0x1p-24f);
  }
  return float_of_bits(bits | sign);
}

// To the nearest float16, ties to even; beyond its range, infinity.
inline uint16_t float_to_half(float value) {
  uint32_t bits = bits_of_float(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  bits &= 0x7FFFFFFFu;
  if (bits > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u);  // NaN
  if (bits < 0x38800000u) {  // below 2^-14: a multiple of 2^-24, which float addition rounds to
    const float magnitude = float_of_bits(bits) + 0.5f;  // whose last bit is 2^-24
    return static_cast<uint16_t>(sign | (bits_of_float(magnitude) - 0x3F000000u));
  }
  bits += 0xFFFu + (bits >> 13 & 1);
  return static_cast<uint16_t>(sign | (bits >= 0x47800000u ? 0x7C00u : (bits - 0x38000000u) >> 13));
}

// 2^(exponent - 127); 255 is NaN (OCP Microscaling Formats 1.0, section 5.4.1).
inline float e8m0_to_float(uint8_t exponent) {
  const uint32_t bits = exponent == 255 ? 0x7FC00000u : exponent ? static_cast<uint32_t>(exponent) << 23 : 0x00400000u;
  return float_of_bits(bits);
}

// The scale of one row of a tile in one group.
inline float scale_at(const PackedWeight& weight, int64_t tile, int64_t group, int64_t row) {
  const int64_t at = (tile * weight.groups + group) * kTileRows + row;
  if (weight.scale == QXC_SCALE_FLOAT16) return half_to_float(half_at(static_cast<const uint16_t*>(weight.scales), at));
  const uint8_t byte = static_cast<const uint8_t*>(weight.scales)[at];
  if (weight.scale == QXC_SCALE_E8M0) return e8m0_to_float(byte);
  return static_cast<float>(byte) * (half_to_float(half_at(weight.row_scales, tile * kTileRows + row)) * 0x1p-8f);
}

// Twice the numbers of E2M1 (the same specification, section 5.3.3), by code.
constexpr int8_t kTwiceE2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// A float of few bits: the sign, the exponent, the mantissa (the same specification, sections 5.3.1 and 5.3.2). The
// magnitudes from `first_not_finite` on are infinity and NaN, or NaN alone.
template <int exponent_bits, int mantissa_bits, uint32_t first_not_finite, uint32_t not_finite = 0>
struct SmallFloat {
  static constexpr int kBits = 1 + exponent_bits + mantissa_bits;
  static constexpr int kMantissaBits = mantissa_bits;
  static constexpr int kBias = (1 << (exponent_bits - 1)) - 1;
  static constexpr uint32_t kLargestMagnitude = (1u << (kBits - 1)) - 1;
  static constexpr uint32_t kFirstNotFinite = first_not_finite;
  static constexpr uint32_t kNotFinite = not_finite;  // the bits of a float32 that make it so
};
using E2M3 = SmallFloat<2, 3, 0x20>;
using E3M2 = SmallFloat<3, 2, 0x20>;
using E4M3 = SmallFloat<4, 3, 0x7F, 0x7FC00000u>;
using E5M2 = SmallFloat<5, 2, 0x7C, 0x7F800000u>;

// 2^exponent, of a normal number.
constexpr float power_of_two(int exponent) {
  float power = 1;
  for (int i = 0; i < exponent; ++i) power *= 2;
  for (int i = 0; i > exponent; --i) power *= 0.5f;
  return power;
}

template <class Element>
inline float small_float(uint32_t code) {
  constexpr int kMantissa = Element::kMantissaBits;
  const uint32_t magnitude = code & Element::kLargestMagnitude;
  uint32_t bits = (magnitude << (23 - kMantissa)) + (static_cast<uint32_t>(127 - Element::kBias) << 23);
  if (magnitude < 1u << kMantissa) {  // zero or subnormal
    bits = bits_of_float(static_cast<float>(magnitude) * power_of_two(1 - Element::kBias - kMantissa));
  }
  if (magnitude >= Element::kFirstNotFinite) bits |= Element::kNotFinite;
  return float_of_bits(bits | (code >> (Element::kBits - 1)) << 31);
}

inline void store_output(const Output& out, int64_t row, int64_t n, float product) {
  const float value = product + out.bias[n * out.bias_stride];
  const int64_t at = row * out.stride + n;
  if (out.is_half) {
    static_cast<uint16_t*>(out.y)[at] = float_to_half(value);
  } else {
    static_cast<float*>(out.y)[at] = value;
  }
}

}  // namespace
}  // namespace qxc
