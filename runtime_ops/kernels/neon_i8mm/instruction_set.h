// NEON's kernels, with products added up by matrix products of bytes.
#pragma once

#include "neon/vectors.h"
#include "neon_i8mm/dot.h"

namespace qxc {
namespace {

using Vector = NeonVector;

template <int bits>
MatMulFamily matmul_family(qxc_code code) {
  return family_of<DotMatrix, bits>(code);
}

}  // namespace
}  // namespace qxc
