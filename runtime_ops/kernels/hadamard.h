// A rotation by Hadamard matrices, in portable C++ that every file compiles for its own instruction set. Internal
// linkage: see scalar.h.
#pragma once

#include "kernels.h"
#include "scalar.h"

namespace qxc {
namespace {

constexpr uint64_t kSigns = 0x243F6A8885A308D3u;  // formats/rotation.py
constexpr int kLargestBlock = 64;

struct Signs {
  float at[kLargestBlock] = {};
  constexpr Signs() {
    for (int i = 0; i < kLargestBlock; ++i) at[i] = (kSigns >> (kLargestBlock - 1 - i) & 1) != 0 ? -1.0f : 1.0f;
  }
};
constexpr Signs kDiagonal;

// The Hadamard matrix of eight.
constexpr float kHadamard[8][8] = {
    {1, 1, 1, 1, 1, 1, 1, 1},     {1, -1, 1, -1, 1, -1, 1, -1}, {1, 1, -1, -1, 1, 1, -1, -1},
    {1, -1, -1, 1, 1, -1, -1, 1}, {1, 1, 1, 1, -1, -1, -1, -1}, {1, -1, 1, -1, -1, 1, -1, 1},
    {1, 1, -1, -1, -1, -1, 1, 1}, {1, -1, -1, 1, -1, 1, 1, -1},
};

// Y = X D H / sqrt(n), of a block of n = 8 `rows` numbers as rows of eight: each row is a sum of eight rows of the
// matrix, then columns go through the fast Walsh-Hadamard transform. A vector is a row, whatever the processor has.
template <int rows>
inline void rotate_block(const float* x, float* y) {
  typedef float Row __attribute__((vector_size(32)));
  Row sums[rows], H[8];
  std::memcpy(H, kHadamard, sizeof H);
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    float each[8];
    std::memcpy(each, x + 8 * r, sizeof each);
    for (int c = 0; c < 8; ++c) each[c] *= kDiagonal.at[8 * r + c];
    Row low = each[0] * H[0], high = each[4] * H[4];
#pragma GCC unroll 3
    for (int j = 1; j < 4; ++j) {
      low += each[j] * H[j];
      high += each[4 + j] * H[4 + j];
    }
    sums[r] = low + high;
  }
#pragma GCC unroll 3
  for (int half = rows / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      if (r & half) continue;
      const Row a = sums[r], b = sums[r + half];
      sums[r] = a + b;
      sums[r + half] = a - b;
    }
  }
  constexpr float scale = rows == 1 ? 0x1.6a09e6p-2f : rows == 2 ? 0.25f : rows == 4 ? 0x1.6a09e6p-3f : 0.125f;
  for (int r = 0; r < rows; ++r) sums[r] *= scale;
  std::memcpy(y, sums, sizeof sums);
}

template <int rows>
void rotate_blocks(const float* x, int64_t columns, float* y) {
  for (int64_t k = 0; k < columns; k += 8 * rows) rotate_block<rows>(x + k, y + k);
}

// See `Kernels`.
inline void rotate(const float* x, int64_t columns, int64_t block_size, float* y) {
  switch (block_size) {
    case 8: return rotate_blocks<1>(x, columns, y);
    case 16: return rotate_blocks<2>(x, columns, y);
    case 32: return rotate_blocks<4>(x, columns, y);
    default: return rotate_blocks<8>(x, columns, y);
  }
}

// The inverse, in place: X Rᵀ = X D R D, for D D = 1.
inline void rotate_back(float* x, int64_t columns, int64_t block_size) {
  const auto sign = [&] {
    for (int64_t k = 0; k < columns; ++k) x[k] *= kDiagonal.at[k % block_size];
  };
  sign();
  rotate(x, columns, block_size, x);
  sign();
}

}  // namespace
}  // namespace qxc
