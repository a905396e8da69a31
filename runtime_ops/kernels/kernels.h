// The kernels: no allocation, no threads, no state. `Kernels` is what one instruction set offers.
#pragma once

#include "tile16.h"

namespace qxc {

enum class Activation { kA8, kA16 };

constexpr int kTilesPerCall = 2;  // what a MatMulTiles call is best given

// Computes the output rows of tiles [first, last), for all rows of `a`.
using MatMulTiles = void (*)(const PackedWeight& weight, const QuantizedRows& a, int64_t first, int64_t last,
                             const Output& out);

// Quantizes row `row` of A, [K] floats. False where integers cannot hold the row (NaN, infinity, or
// numbers too small to scale): it is then all zeros in `out`, and needs the product with decoded rows.
using QuantizeRow = bool (*)(const float* a, int64_t columns, int64_t row, const QuantizedRows& out);

struct Kernels {
  const char* name;
  QuantizeRow quantize_a8;
  QuantizeRow quantize_a16;
  MatMulTiles (*matmul)(Code code, int bits, Activation activation);
};

// Decodes columns [first, last) of one row of the matrix.
void decode_row(const PackedWeight& weight, Code code, int bits, int64_t row, int64_t first, int64_t last,
                float* values);

// The rows of A [M, K] that are not yet `done`, times the decoded weights of output rows [first, last), in float: NaN
// and infinity do as in any float product.
void matmul_float(const PackedWeight& weight, Code code, int bits, const float* a, int64_t rows, const bool* done,
                  int64_t first, int64_t last, const Output& out);

// Null where the library was not built with that instruction set, or the processor lacks it.
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();

}  // namespace qxc
