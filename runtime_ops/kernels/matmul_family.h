// A code's products, out of what an instruction set hands in: include its instruction_set.h first.
#pragma once

#include "matmul_tiles.h"

namespace qxc {
namespace {

template <int bits>
MatMulFamily matmul_family(qxc_code code) {
  return {tiles_of<RoundedProduct<Activation::kA8>, bits>(code), tiles_of<RoundedProduct<Activation::kA16>, bits>(code),
          tiles_of<FloatProduct, bits>(code)};
}

}  // namespace
}  // namespace qxc
