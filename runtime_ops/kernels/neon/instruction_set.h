// What NEON hands in.
#pragma once

#include "neon/dot.h"
#include "neon/vectors.h"

namespace qxc {
namespace {

using Vector = NeonVector;

template <int bits>
MatMulFamily matmul_family(qxc_code code) {
  return family_of<DotNeon, bits>(code);
}

}  // namespace
}  // namespace qxc
