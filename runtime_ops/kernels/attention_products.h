// The products of attention: of floats, and of integers where the cache holds codes and few queries share it. There
// queries and softmax's weights are rounded to 16 bits, so that what they meet need not become floats. Internal
// linkage: see scalar.h.
#pragma once

#include <cfloat>

#include "attention_layout.h"
#include "cache_rows.h"
#include "lanes.h"
#include "scalar.h"

namespace qxc {
namespace {

constexpr int kTileHeight = 6;                     // rows of a product whose sums stay in registers
constexpr int kTileVectors = kLanes == 8 ? 2 : 4;  // and vectors of columns: AVX2 has half as many registers

inline int64_t whole_vectors(int64_t count, int64_t lanes = kLanes) { return (count + lanes - 1) / lanes * lanes; }

// A matrix whose rows are whole vectors.
template <class Number>
struct Matrix {
  Number* at;
  int64_t stride;

  Number* row(int64_t index) const { return at + index * stride; }
};

using FloatMatrix = Matrix<const float>;

// C [rows, columns] = A [rows, depth] B [depth, columns], added to what is there or not.
struct FloatsByFloats {
  FloatMatrix a, b;
  bool adds;
  Matrix<float> c;

  using Sums = Floats;
  Sums first(int64_t row, int64_t column) const { return adds ? load(c.row(row) + column) : Floats{}; }
  Floats factor(int64_t row, int64_t k) const { return splat(a.row(row)[k]); }
  Floats vector(int64_t k, int64_t column) const { return load(b.row(k) + column); }
  static Sums add(Floats factor, Floats vector, Sums sums) { return multiply_add(factor, vector, sums); }
  void finish(int64_t row, int64_t column, Sums sums) const { store(c.row(row) + column, sums); }
};

// C [rows, columns] += scales [rows] * A [rows, 2 depth] B [2 depth, columns], in 16 bits. Two rows of B lie as one:
// the numbers of a column are neighbours.
struct PairsByPairs {
  Matrix<const int16_t> a, b;
  const float* scales;
  Matrix<float> c;

  using Sums = SignedIntegers;
  static Sums first(int64_t, int64_t) { return Sums{}; }
  Shorts factor(int64_t row, int64_t k) const {
    int32_t pair;
    std::memcpy(&pair, a.row(row) + 2 * k, sizeof pair);
    return (Shorts)(pair - SignedIntegers{});
  }
  Shorts vector(int64_t k, int64_t column) const { return load_shorts(b.row(k) + 2 * column); }
  static Sums add(Shorts factor, Shorts vector, Sums sums) { return add_products(factor, vector, sums); }
  void finish(int64_t row, int64_t column, Sums sums) const {
    float* to = c.row(row) + column;
    store(to, multiply_add(__builtin_convertvector(sums, Floats), splat(scales[row]), load(to)));
  }
};

template <int rows, int vectors, class Product>
inline void multiply_tile(const Product& product, int64_t row, int64_t column, int64_t depth) {
  typename Product::Sums sums[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sums[r][v] = product.first(row + r, column + v * kLanes);
  }
  for (int64_t k = 0; k < depth; ++k) {
    decltype(product.vector(k, column)) line[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) line[v] = product.vector(k, column + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const auto factor = product.factor(row + r, k);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[r][v] = product.add(factor, line[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) product.finish(row + r, column + v * kLanes, sums[r][v]);
  }
}

template <int vectors, class Product>
void multiply_columns(const Product& product, int64_t rows, int64_t column, int64_t depth) {
  for (int64_t row = 0; row < rows; row += kTileHeight) {
    switch (smaller(rows - row, kTileHeight)) {
      case 1: multiply_tile<1, vectors>(product, row, column, depth); break;
      case 2: multiply_tile<2, vectors>(product, row, column, depth); break;
      case 3: multiply_tile<3, vectors>(product, row, column, depth); break;
      case 4: multiply_tile<4, vectors>(product, row, column, depth); break;
      case 5: multiply_tile<5, vectors>(product, row, column, depth); break;
      default: multiply_tile<kTileHeight, vectors>(product, row, column, depth);
    }
  }
}

// Any whole number of vectors of columns.
template <class Product>
inline void multiply(const Product& product, int64_t rows, int64_t depth, int64_t columns) {
  int64_t column = 0;
  for (; column + kTileVectors * kLanes <= columns; column += kTileVectors * kLanes) {
    multiply_columns<kTileVectors>(product, rows, column, depth);
  }
  for (; column < columns; column += kLanes) multiply_columns<1>(product, rows, column, depth);
}

// Scores of few rows: keys are read as they lie. Beyond `count`, those of the last key stand again.
inline void score_as_they_lie(FloatMatrix q, int64_t rows, FloatMatrix keys, int64_t count, int64_t width,
                              float* scores) {
  for (int64_t first = 0; first < count; first += kLanes) {
    for (int64_t r = 0; r < rows; ++r) {
      Floats products[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const float* key = keys.row(smaller(first + i, count - 1));
        Floats sum{};
        for (int64_t d = 0; d < width; d += kLanes) sum = multiply_add(load(q.row(r) + d), load(key + d), sum);
        products[i] = sum;
      }
      store(scores + r * kKeysPerBlock + first, totals(products));
    }
  }
}

// Keys [count, width] to columns [width, kKeysPerBlock]; beyond `count`, as above.
inline void transpose_keys(FloatMatrix keys, int64_t count, int64_t width, float* columns) {
  for (int64_t first = 0; first < count; first += kLanes) {
    for (int64_t d = 0; d < width; d += kLanes) {
      Floats square[kLanes];
      for (int i = 0; i < kLanes; ++i) square[i] = load(keys.row(smaller(first + i, count - 1)) + d);
      transpose(square);
      for (int i = 0; i < kLanes; ++i) store(columns + (d + i) * kKeysPerBlock + first, square[i]);
    }
  }
}

// Numbers [count], whole vectors of floats, as integers of 16 bits; their scale, NaN where one of them is not finite,
// and 0 where it would be no normal number. `to` has room for whole vectors of shorts.
inline float round_to_shorts(const float* x, int64_t count, int16_t* to) {
  Floats largest_lanes{}, zero_lanes{};
  for (int64_t i = 0; i < count; i += kLanes) {
    const Floats some = load(x + i);
    largest_lanes = larger(some < 0.0f ? -some : some, largest_lanes);
    zero_lanes += some * 0.0f;
  }
  const float scale = largest(largest_lanes) / 32767 + total(zero_lanes);
  const bool is_usable = scale >= FLT_MIN;
  const float factor = is_usable ? 1 / scale : 0;
  for (int64_t i = 0; i < count; i += 2 * kLanes) {
    const Floats low = load(x + i), high = i + kLanes < count ? load(x + i + kLanes) : Floats{};
    store(to + i, is_usable ? nearest_shorts(low * factor, high * factor) : Shorts{});
  }
  return is_usable || scale != scale ? scale : 0;
}

// Scores of rows in 16 bits, as `score_as_they_lie`. Inline, for a width that the compiler may know.
[[gnu::always_inline]] inline void score_codes(Matrix<const int16_t> q, const float* query_scales, int64_t rows,
                                               Matrix<const int16_t> keys, const float* key_scales, int64_t count,
                                               int64_t width, float* scores) {
  for (int64_t first = 0; first < count; first += kLanes) {
    for (int64_t r = 0; r < rows; ++r) {
      SignedIntegers products[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const int16_t* key = keys.row(smaller(first + i, count - 1));
        SignedIntegers sum{};
#pragma GCC unroll 4
        for (int64_t d = 0; d < width; d += 2 * kLanes)
          sum = add_products(load_shorts(q.row(r) + d), load_shorts(key + d), sum);
        products[i] = sum;
      }
      const Floats sums = __builtin_convertvector(totals(products), Floats);
      store(scores + r * kKeysPerBlock + first, sums * query_scales[r] * load(key_scales + first));
    }
  }
}

}  // namespace
}  // namespace qxc
