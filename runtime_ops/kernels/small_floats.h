// y[M, 16] = float [M, K] x codes [16, K] for codes that are floats of 6 and 8 bits, too many values for the bytes of
// the other products. In the compiler's vector extension, compiled by each instruction set for itself: a block of
// weights is decoded once for up to kRowsPerPass rows of A.
#pragma once

#include "kernels.h"
#include "lanes.h"
#include "tile_loops.h"

namespace qxc {
namespace {

constexpr int kParts = kTileRows / kLanes;  // vectors of a tile's rows

// [32, 16] weights: lanes are rows of W.
using DecodedBlock = Floats[kBlockColumns][kParts];

// A word of a line is four consecutive inputs of one row.
QXC_INLINE Integers load_words(const uint8_t* lines, int line, int part) {
  Integers words;
  std::memcpy(&words, lines + line * kLineBytes + part * static_cast<int>(sizeof words), sizeof words);
  return words;
}

// The codes of a step, one in a byte.
template <int bits>
QXC_INLINE Integers code_words(const uint8_t* lines, int step, int part) {
  if constexpr (bits == 8) return load_words(lines, step, part);
  const Integers low = load_words(lines, step / 2, part) >> (4 * (step % 2)) & 0x0F0F0F0Fu;
  const Integers high = load_words(lines, 4 + step / 4, part) >> (2 * (step % 4)) & 0x03030303u;
  return low | high << 4;
}

// As `small_float` of scalar.h.
template <class Element>
QXC_INLINE Floats small_floats(Integers codes) {
  constexpr int kMantissa = Element::kMantissaBits, kBias = Element::kBias;
  const Integers magnitude = codes & Element::kLargestMagnitude;
  const Floats subnormal =
      __builtin_convertvector((SignedIntegers)magnitude, Floats) * power_of_two(1 - kBias - kMantissa);
  const Integers normal = (magnitude << (23 - kMantissa)) + (static_cast<uint32_t>(127 - kBias) << 23);
  Integers bits = magnitude < 1u << kMantissa ? (Integers)subnormal : normal;
  if constexpr (Element::kFirstNotFinite <= Element::kLargestMagnitude) {
    bits |= magnitude >= Element::kFirstNotFinite ? Integers{} + Element::kNotFinite : Integers{};
  }
  return (Floats)(bits | (codes >> (Element::kBits - 1)) << 31);
}

template <class Element>
QXC_INLINE void decode_block(const PackedWeight& weight, int64_t tile, int64_t column, DecodedBlock& weights) {
  constexpr int bits = Element::kBits;
  const uint8_t* lines = weight.packed + (tile * weight.blocks + column / kBlockColumns) * bits * kLineBytes;
  const int steps = static_cast<int>(smaller(kBlockColumns, weight.columns - column) + 3) / 4;
  Floats scales[kParts] = {};
  int64_t group = -1;
  for (int step = 0; step < steps; ++step) {
    if (const int64_t of_step = (column + 4 * step) / weight.group_size; of_step != group) {
      group = of_step;
      float values[kTileRows];
      for (int row = 0; row < kTileRows; ++row) values[row] = scale_at(weight, tile, group, row);
      for (int part = 0; part < kParts; ++part) scales[part] = load(values + part * kLanes);
    }
    for (int part = 0; part < kParts; ++part) {
      const Integers words = code_words<bits>(lines, step, part);
      for (int j = 0; j < 4; ++j) {
        weights[4 * step + j][part] = scales[part] * small_floats<Element>(words >> (8 * j) & 0xFFu);
      }
    }
  }
}

// Rows of A [first_row, last_row) times one tile. Every block's products are added up by themselves, which keeps
// rounding errors small.
template <class Element>
void small_float_pass(const PackedWeight& weight, const FloatRows& a, int64_t tile, int64_t first_row, int64_t last_row,
                      const Output& out) {
  const float* rows[kRowsPerPass];
  int64_t indices[kRowsPerPass];
  int64_t count = 0;
  for (int64_t row = first_row; row < last_row; ++row) {
    if (a.skip[row]) continue;
    rows[count] = a.a + row * weight.columns;
    indices[count++] = row;
  }
  if (count == 0) return;
  DecodedBlock weights;
  Floats y[kRowsPerPass][kParts];
  std::memset(y, 0, static_cast<size_t>(count) * sizeof y[0]);
  for (int64_t column = 0; column < weight.columns; column += kBlockColumns) {
    const int64_t columns = smaller(kBlockColumns, weight.columns - column);
    decode_block<Element>(weight, tile, column, weights);
    each_rows<4>(count, [&](auto at_once, int64_t m) QXC_LAMBDA {
      Floats sums[at_once.value][kParts] = {};
      for (int64_t k = 0; k < columns; ++k) {
        for (int i = 0; i < at_once.value; ++i) {
          const Floats input = splat(rows[m + i][column + k]);
          for (int part = 0; part < kParts; ++part) {
            sums[i][part] = multiply_add(weights[k][part], input, sums[i][part]);
          }
        }
      }
      for (int i = 0; i < at_once.value; ++i) {
        for (int part = 0; part < kParts; ++part) y[m + i][part] += sums[i][part];
      }
    });
  }
  const int64_t n = tile * kTileRows;
  for (int64_t m = 0; m < count; ++m) {
    float values[kTileRows];
    std::memcpy(values, y[m], sizeof values);
    for (int64_t r = 0; r < smaller(kTileRows, weight.rows - n); ++r) store_output(out, indices[m], n + r, values[r]);
  }
}

template <class Element>
void small_float_tiles(const PackedWeight& weight, const FloatRows& a, int64_t first, int64_t last, const Output& out) {
  each_pass(first, last, a.rows, [&](int64_t tile, int64_t row, int64_t rows) {
    small_float_pass<Element>(weight, a, tile, row, row + rows, out);
  });
}

// Null for other codes.
inline MatMulFloatTiles small_float_product(qxc_code code) {
  switch (code) {
    case QXC_E2M3: return small_float_tiles<E2M3>;
    case QXC_E3M2: return small_float_tiles<E3M2>;
    case QXC_E4M3: return small_float_tiles<E4M3>;
    case QXC_E5M2: return small_float_tiles<E5M2>;
    default: return nullptr;
  }
}

}  // namespace
}  // namespace qxc
