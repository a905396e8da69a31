// NEON's kernels, with products added up by dot-product instructions.
#pragma once

#include "neon/vectors.h"
#include "neon_dotprod/dot.h"

namespace qxc {
namespace {

using Vector = NeonVector;
template <Activation activation>
using RoundedProduct = NeonRoundedProduct<DotProduct, activation>;
using FloatProduct = NeonFloatProduct;

}  // namespace
}  // namespace qxc
