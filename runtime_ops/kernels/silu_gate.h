// silu(gate) * up, in portable C++ that every file compiles for its own instruction set. Internal linkage: see
// scalar.h.
#pragma once

#include "kernels.h"
#include "scalar.h"

namespace qxc {
namespace {

// e^-|x|: 2^n e^r with |r| <= ln(2) / 2, and e^r by its Taylor series, whose next term is below half an ulp. Of NaN
// it is 0. Nothing here compares floats: a comparison may trap, and then gcc makes no vectors of a loop.
inline float exp_of_minus_magnitude(float x) {
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693145752f, kLn2Low = 1.42860677e-6f;  // the high part times any n is exact
  constexpr float kIntegerBits = 0x1.8p23f;                           // added, it leaves an integer in the low bits
  const int32_t magnitude = static_cast<int32_t>(bits_of_float(x) & 0x7FFFFFFFu);
  const int32_t largest = static_cast<int32_t>(bits_of_float(105));  // e^-105 is 0
  const float t = -float_of_bits(static_cast<uint32_t>(magnitude < largest ? magnitude : largest));
  const float shifted = t * kLog2E + kIntegerBits;
  const float n = shifted - kIntegerBits;
  const float r = t - n * kLn2High - n * kLn2Low;
  float series = 1.0f / 5040;
  series = series * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r * r + r + 1;
  // 2^n in two factors: n goes down to -151, where the result is subnormal
  const uint32_t whole = bits_of_float(shifted) - bits_of_float(kIntegerBits);
  const uint32_t half = static_cast<uint32_t>(static_cast<int32_t>(whole) >> 1);
  return series * float_of_bits((half + 127) << 23) * float_of_bits((whole - half + 127) << 23);
}

// x / (1 + e^-x), by the exponential that cannot overflow. Minus infinity gives NaN, as in that formula.
inline float silu(float x) {
  const float e = exp_of_minus_magnitude(x);
  const uint32_t if_negative = 0 - (bits_of_float(x) >> 31);
  const float e_or_1 = float_of_bits((bits_of_float(e) & if_negative) | (bits_of_float(1) & ~if_negative));
  return x * e_or_1 / (1 + e);
}

// See `Kernels`.
inline void silu_gate(const float* products, int64_t pairs, bool is_half, void* y) {
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const float* gate = products + 2 * pair * kTileRows;
    const float* up = gate + kTileRows;
    float gated[kTileRows];
    for (int r = 0; r < kTileRows; ++r) gated[r] = silu(gate[r]) * up[r];
    if (is_half) {
      for (int r = 0; r < kTileRows; ++r) {
        static_cast<uint16_t*>(y)[pair * kTileRows + r] = float_to_half(gated[r]);
      }
    } else {
      std::memcpy(static_cast<float*>(y) + pair * kTileRows, gated, sizeof gated);
    }
  }
}

}  // namespace
}  // namespace qxc
