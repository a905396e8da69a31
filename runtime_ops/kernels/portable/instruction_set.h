// What portable C++ hands in.
#pragma once

#include "portable/matmul.h"
#include "portable/vectors.h"

namespace qxc {
namespace {

using Vector = PortableVector;

template <int bits>
MatMulFamily matmul_family(qxc_code code) {
  return {tiles_of<RoundedProduct<Activation::kA8>, bits>(code), tiles_of<RoundedProduct<Activation::kA16>, bits>(code),
          tiles_of<FloatProduct, bits>(code)};
}

}  // namespace
}  // namespace qxc
