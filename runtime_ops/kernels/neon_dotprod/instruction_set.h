// NEON's kernels, with products added up by dot-product instructions.
#pragma once

#include "neon/vectors.h"
#include "neon_dotprod/dot.h"

namespace qxc {
namespace {

using Vector = NeonVector;

template <int bits>
MatMulFamily matmul_family(qxc_code code) {
  return family_of<DotProduct, bits>(code);
}

}  // namespace
}  // namespace qxc
