// Rows of a cache in integers: codes, then the upper half of a float32, their scale (docs/formats.md). Internal
// linkage: see scalar.h.
#pragma once

#include <cfloat>
#include <cmath>

#include "attention_layout.h"
#include "lanes.h"
#include "scalar.h"

namespace qxc {
namespace {

constexpr uint32_t kNaNScale = 0x7FC0;  // of a row that holds NaN or infinity

inline float zero_point(int32_t cache) { return cache == QXC_CACHE_INT8 ? 128.0f : 7.5f; }
inline float largest_code(int32_t cache) { return cache == QXC_CACHE_INT8 ? 127.0f : 7.5f; }

// The upper half of a float32 at or above a row's exact scale; 0 where that is no normal number.
inline uint32_t scale_bits(const float* row, int64_t D, int32_t cache) {
  Floats largest_lanes{}, zero_lanes{};
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes) {
    const Floats x = load(row + d);
    largest_lanes = larger(x < 0.0f ? -x : x, largest_lanes);
    zero_lanes += x * 0.0f;
  }
  float most = largest(largest_lanes), zeros = total(zero_lanes);  // NaN where a number is not finite
  for (; d < D; ++d) {
    most = std::fabs(row[d]) > most ? std::fabs(row[d]) : most;
    zeros += row[d] * 0.0f;
  }
  const float exact = most / largest_code(cache) + zeros;
  if (exact != exact) return kNaNScale;
  return exact < FLT_MIN ? 0 : (bits_of_float(exact) + 0xFFFF) >> 16;
}

// A row [D], which is followed by room for D + 1 bytes, to its bytes.
inline void encode_cache_row(float* row, int64_t D, int32_t cache, uint8_t* to) {
  const uint32_t bits = scale_bits(row, D, cache);
  const bool is_usable = bits != 0 && bits != kNaNScale;
  const float scale = float_of_bits(bits << 16), to_nearest = zero_point(cache) + 0.5f;
  uint8_t* codes = cache == QXC_CACHE_INT8 ? to : reinterpret_cast<uint8_t*>(row + D);
  int64_t d = 0;
  for (; is_usable && d + kLanes <= D; d += kLanes) {
    const Bytes some = narrowed(load(row + d) / scale + to_nearest);
    std::memcpy(codes + d, &some, sizeof some);
  }
  for (; d < D; ++d) codes[d] = static_cast<uint8_t>((is_usable ? row[d] / scale : 0) + to_nearest);
  const int64_t bytes = code_bytes(cache, D);
  if (cache == QXC_CACHE_INT4) {
    codes[D] = 0;
    for (int64_t i = 0; i < bytes; ++i) to[i] = static_cast<uint8_t>(codes[i] | codes[bytes + i] << 4);
  }
  to[bytes] = static_cast<uint8_t>(bits);
  to[bytes + 1] = static_cast<uint8_t>(bits >> 8);
}

inline float scale_of_cache_row(const uint8_t* row, int64_t D, int32_t cache) {
  uint16_t upper;
  std::memcpy(&upper, row + code_bytes(cache, D), sizeof upper);
  return float_of_bits((upper & 0x7FFFu) << 16);
}

// The inverse.
inline void decode_cache_row(const uint8_t* from, int64_t D, int32_t cache, float* row) {
  const int64_t bytes = code_bytes(cache, D);
  const float scale = scale_of_cache_row(from, D, cache), zero = zero_point(cache);
  int64_t i = 0;
  if (cache == QXC_CACHE_INT8) {
    for (; i + kLanes <= bytes; i += kLanes) store(row + i, (widened(load_bytes(from + i)) - zero) * scale);
    for (; i < bytes; ++i) row[i] = (static_cast<float>(from[i]) - zero) * scale;
    return;
  }
  for (; i + kLanes <= D - bytes; i += kLanes) {
    const Bytes both = load_bytes(from + i);
    store(row + i, (widened(both & 15) - zero) * scale);
    store(row + bytes + i, (widened(both >> 4) - zero) * scale);
  }
  for (; i < bytes; ++i) {
    row[i] = (static_cast<float>(from[i] & 15) - zero) * scale;
    if (bytes + i < D) row[bytes + i] = (static_cast<float>(from[i] >> 4) - zero) * scale;
  }
}

// What a row's scale is of codes from their zero point: those of int4, whose zero point is no integer, count halves.
inline float centered_scale(const uint8_t* row, int64_t D, int32_t cache) {
  return scale_of_cache_row(row, D, cache) * (cache == QXC_CACHE_INT8 ? 1.0f : 0.5f);
}

// Of the code that is meant there.
template <int32_t cache, class Codes>
inline Codes centered(Codes codes) {
  return static_cast<Codes>(cache == QXC_CACHE_INT8 ? codes - 128 : codes + codes - 15);
}

// The centered codes of one row [D], or of two rows, a column's as neighbours [D, 2].
template <int32_t cache, int rows>
inline void center_codes(const uint8_t* const (&from)[rows], int64_t D, int16_t* to) {
  constexpr int64_t kColumns = 2 * kLanes / rows;
  constexpr bool is_int8 = cache == QXC_CACHE_INT8;
  const int64_t bytes = code_bytes(cache, D), full = is_int8 ? D : D - bytes;  // bytes of which all bits are used
  const int64_t vectors = full / kColumns * kColumns;
  for (int64_t i = 0; i < vectors; i += kColumns) {
    const Shorts codes = rows == 1 ? widened_to_shorts(from[0] + i) : widened_in_turn(from[0] + i, from[rows - 1] + i);
    store(to + rows * i, centered<cache>(is_int8 ? codes : codes & 15));
    if (!is_int8) store(to + rows * (bytes + i), centered<cache>(codes >> 4));
  }
  for (int64_t i = vectors; i < bytes; ++i) {
    for (int r = 0; r < rows; ++r) {
      const int code = from[r][i];
      to[rows * i + r] = static_cast<int16_t>(centered<cache>(is_int8 ? code : code & 15));
      if (!is_int8 && bytes + i < D) to[rows * (bytes + i) + r] = static_cast<int16_t>(centered<cache>(code >> 4));
    }
  }
}

}  // namespace
}  // namespace qxc
