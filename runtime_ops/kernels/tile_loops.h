// The loops around an instruction set's products: over tiles of Y, passes over rows of A, and rows that are multiplied
// at once.
#pragma once

#include <type_traits>

#include "scalar.h"

#define QXC_INLINE inline __attribute__((always_inline))
#define QXC_LAMBDA __attribute__((always_inline))

namespace qxc {
namespace {

constexpr int kRowsPerPass = 64;  // of A, whose sums lie on the stack
constexpr int kLargestUnit = 256;

// Calls body(tile, row, count) for every tile, and all rows of A in passes of at most kRowsPerPass.
template <class Body>
QXC_INLINE void each_pass(int64_t first_tile, int64_t last_tile, int64_t rows, const Body& body) {
  for (int64_t tile = first_tile; tile < last_tile; ++tile) {
    for (int64_t row = 0; row < rows; row += kRowsPerPass) body(tile, row, smaller(kRowsPerPass, rows - row));
  }
}

// Calls body(count, row), where count is a constant: `most` rows at once, then 4, 2 and 1 of what is left.
template <int most, class Body>
QXC_INLINE void each_rows(int64_t rows, const Body& body) {
  int64_t row = 0;
  for (; row + most <= rows; row += most) body(std::integral_constant<int, most>(), row);
  if constexpr (most > 4) {
    if (row + 4 <= rows) {
      body(std::integral_constant<int, 4>(), row);
      row += 4;
    }
  }
  if constexpr (most > 2) {
    if (row + 2 <= rows) {
      body(std::integral_constant<int, 2>(), row);
      row += 2;
    }
  }
  if (most > 1 && row < rows) body(std::integral_constant<int, 1>(), row);
}

// What a row's sums of products are multiplied with at the end.
template <Activation activation>
QXC_INLINE float row_scale(const QuantizedRows& a, int64_t row) {
  return activation == Activation::kA8 ? a.scales[row] : 1;
}

}  // namespace
}  // namespace qxc
