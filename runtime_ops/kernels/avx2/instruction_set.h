// What AVX2 with FMA and F16C hands in.
#pragma once

#include "avx2/blocks.h"
#include "avx2/vectors.h"

namespace qxc {
namespace {

using Vector = Avx2Vector;

template <int bits>
MatMulFamily matmul_family(qxc_code code) {
  return {tiles_of<RoundedProduct<Activation::kA8>, bits>(code), tiles_of<RoundedProduct<Activation::kA16>, bits>(code),
          tiles_of<FloatProduct, bits>(code)};
}

}  // namespace
}  // namespace qxc
