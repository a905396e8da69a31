// Numbers of a tensor that is float32 or float16. Internal linkage: see scalar.h.
#pragma once

#include "scalar.h"

namespace qxc {
namespace {

inline const void* element(const void* at, bool is_half, int64_t index) {
  return static_cast<const char*>(at) + index * (is_half ? 2 : 4);
}

inline void* element(void* at, bool is_half, int64_t index) {
  return static_cast<char*>(at) + index * (is_half ? 2 : 4);
}

template <class Vector>
void read(const void* from, bool is_half, int64_t count, float* to) {
  if (is_half) return Vector::widen(static_cast<const uint16_t*>(from), count, to);
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof *to);
}

inline void write(const float* from, int64_t count, bool is_half, void* to) {
  if (!is_half) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof *from);
    return;
  }
  for (int64_t i = 0; i < count; ++i) static_cast<uint16_t*>(to)[i] = float_to_half(from[i]);
}

}  // namespace
}  // namespace qxc
