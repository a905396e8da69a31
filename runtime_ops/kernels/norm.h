// Norms of rows, which every instruction set compiles for itself. Internal linkage: see scalar.h.
#pragma once

#include <cmath>

#include "elements.h"
#include "kernels.h"
#include "lanes.h"
#include "scalar.h"

namespace qxc {
namespace {

// The first `count` lanes; zeros beyond.
inline Floats first_lanes(Floats values, int64_t count) {
  if (count >= kLanes) return values;
  float kept[kLanes] = {};
  std::memcpy(kept, &values, static_cast<size_t>(count) * sizeof *kept);
  return load(kept);
}

// A row of a tensor of `columns` numbers each, by the vector: zeros beyond its end.
template <class Vector, bool is_half>
struct Row {
  void* at;
  int64_t columns;

  Row(const void* tensor, int64_t row, int64_t columns)
      : at(const_cast<void*>(element(tensor, is_half, row * columns))), columns(columns) {}

  Floats read_lanes(int64_t first) const {
    const int64_t count = smaller(kLanes, columns - first);
    if (!is_half && count == kLanes) return load(static_cast<const float*>(at) + first);
    float values[kLanes] = {};
    read<Vector>(element(at, is_half, first), is_half, count, values);
    return load(values);
  }

  void write_lanes(int64_t first, Floats values) const {
    const int64_t count = smaller(kLanes, columns - first);
    if (!is_half && count == kLanes) return store(static_cast<float*>(at) + first, values);
    float each[kLanes];
    store(each, values);
    write(each, count, is_half, element(at, is_half, first));
  }
};

template <class Vector, bool is_half>
void normalize_row(const qxc_norm& norm, int64_t row) {
  const int64_t N = norm.columns;
  Row<Vector, is_half> x(norm.x, row, N);
  if (norm.skip) {
    const Row<Vector, is_half> skip(norm.skip, row, N), sum(norm.sum, row, N);
    for (int64_t k = 0; k < N; k += kLanes) sum.write_lanes(k, x.read_lanes(k) + skip.read_lanes(k));
    x = sum;  // as it is rounded
  }
  float mean = 0;
  if (norm.is_centered) {
    Floats sum{};
    for (int64_t k = 0; k < N; k += kLanes) sum += x.read_lanes(k);
    mean = total(sum) / static_cast<float>(N);
  }
  Floats squares{};
  for (int64_t k = 0; k < N; k += kLanes) {
    const Floats difference = first_lanes(x.read_lanes(k) - mean, N - k);
    squares = multiply_add(difference, difference, squares);
  }
  const float factor = 1 / std::sqrt(total(squares) / static_cast<float>(N) + norm.epsilon);
  const Row<Vector, false> gain(norm.gain, 0, N), bias(norm.bias, 0, N);
  const Row<Vector, is_half> y(norm.y, row, N);
  for (int64_t k = 0; k < N; k += kLanes) {
    Floats scaled = (x.read_lanes(k) - mean) * factor * gain.read_lanes(k);
    if (norm.bias) scaled += bias.read_lanes(k);
    y.write_lanes(k, scaled);
  }
}

// See `Kernels`.
template <class Vector>
void normalize(const qxc_norm& norm, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    if (norm.element == QXC_FLOAT16) {
      normalize_row<Vector, true>(norm, row);
    } else {
      normalize_row<Vector, false>(norm, row);
    }
  }
}

}  // namespace
}  // namespace qxc
