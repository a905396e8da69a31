// What AVX-512 with VNNI and VBMI hands in.
#pragma once

#include "avx512/blocks.h"
#include "avx512/vectors.h"

namespace qxc {
namespace {

using Vector = Avx512Vector;

template <int bits>
MatMulFamily matmul_family(qxc_code code) {
  return {tiles_of<RoundedProduct<Activation::kA8>, bits>(code), tiles_of<RoundedProduct<Activation::kA16>, bits>(code),
          tiles_of<FloatProduct, bits>(code)};
}

}  // namespace
}  // namespace qxc
