// The kernels: no allocation, no threads, no state. `Kernels` is what one instruction set offers.
#pragma once

#include "tile16.h"

namespace qxc {

enum class Activation { kA8, kA16 };  // of integer kernels

// Computes the output rows of tiles [first, last), for all rows of `a`.
using MatMulTiles = void (*)(const PackedWeight& weight, const QuantizedRows& a, int64_t first, int64_t last,
                             const Output& out);

// The same with A as it is and sums in float: NaN and infinity do as in any float product.
using MatMulFloatTiles = void (*)(const PackedWeight& weight, const FloatRows& a, int64_t first, int64_t last,
                                  const Output& out);

// A format's kernels, by what they do with A. Floats of 6 and 8 bits have `a32` alone.
struct MatMulFamily {
  MatMulTiles a8, a16;
  MatMulFloatTiles a32;
};

// Quantizes row `row` of A, [K] floats. False where integers cannot hold the row (NaN, infinity, or
// numbers too small to scale): it is then all zeros in `out`, and needs the product with decoded rows.
using QuantizeRow = bool (*)(const float* a, int64_t columns, int64_t row, const QuantizedRows& out);

struct AttentionLayout;

}  // namespace qxc

struct qxc_kernels {
  const char* name;
  qxc::QuantizeRow quantize_a8;
  qxc::QuantizeRow quantize_a16;
  qxc::MatMulFamily (*matmul)(qxc_code code, int bits);
  void (*widen)(const uint16_t* halves, int64_t count, float* values);
  // silu(gate) * up for pairs of tiles of a row of products, [pairs, 2, 16], as float32 or float16 [pairs, 16].
  void (*silu_gate)(const float* products, int64_t pairs, bool is_half, void* y);
  // A row times Hadamard matrices, [columns] to [columns], which may be the same memory.
  void (*rotate)(const float* x, int64_t columns, int64_t block_size, float* y);
  // The phases of an attention, a task each (attention_layout.h). `scratch` is one worker's.
  void (*append)(const qxc::AttentionLayout& layout, int64_t task, float* scratch);
  void (*attend)(const qxc::AttentionLayout& layout, int64_t task, float* scratch);
  void (*combine)(const qxc::AttentionLayout& layout, int64_t task);
  void (*normalize)(const qxc_norm& norm, int64_t first_row, int64_t last_row);
};

namespace qxc {

using Kernels = qxc_kernels;  // the name of the public interface

// Decodes columns [first, last) of one row of the matrix.
void decode_row(const PackedWeight& weight, qxc_code code, int bits, int64_t row, int64_t first, int64_t last,
                float* values);

}  // namespace qxc
