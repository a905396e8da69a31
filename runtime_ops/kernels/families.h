// A format's kernels as one family, out of the templates `matmul_tiles` and `matmul_float_tiles` of the file that
// includes this one after them.
#pragma once

#include "kernels.h"

namespace qxc {
namespace {

template <class Block>
constexpr MatMulFamily family_of() {
  return {matmul_tiles<Block, Activation::kA8>, matmul_tiles<Block, Activation::kA16>, matmul_float_tiles<Block>};
}

// Which kind of codebook a weight has shows only in its tensors.
template <class PerTensor, class PerRow, Activation activation>
void matmul_codebook(const PackedWeight& weight, const QuantizedRows& a, int64_t first, int64_t last,
                     const Output& out) {
  if (weight.codebook_per_tensor) return matmul_tiles<PerTensor, activation>(weight, a, first, last, out);
  matmul_tiles<PerRow, activation>(weight, a, first, last, out);
}

template <class PerTensor, class PerRow>
void matmul_codebook_float(const PackedWeight& weight, const FloatRows& a, int64_t first, int64_t last,
                           const Output& out) {
  if (weight.codebook_per_tensor) return matmul_float_tiles<PerTensor>(weight, a, first, last, out);
  matmul_float_tiles<PerRow>(weight, a, first, last, out);
}

template <class PerTensor, class PerRow>
constexpr MatMulFamily family_of_codebooks() {
  return {matmul_codebook<PerTensor, PerRow, Activation::kA8>, matmul_codebook<PerTensor, PerRow, Activation::kA16>,
          matmul_codebook_float<PerTensor, PerRow>};
}

}  // namespace
}  // namespace qxc
