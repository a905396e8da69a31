// NEON's kernels, with products added up by matrix products of bytes.
#pragma once

#include "neon/vectors.h"
#include "neon_i8mm/dot.h"

namespace qxc {
namespace {

using Vector = NeonVector;
template <Activation activation>
using RoundedProduct = NeonRoundedProduct<DotMatrix, activation>;
using FloatProduct = NeonFloatProduct;

}  // namespace
}  // namespace qxc
