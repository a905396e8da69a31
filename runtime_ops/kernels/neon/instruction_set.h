// What NEON hands in.
#pragma once

#include "neon/dot.h"
#include "neon/vectors.h"

namespace qxc {
namespace {

using Vector = NeonVector;
template <Activation activation>
using RoundedProduct = NeonRoundedProduct<DotNeon, activation>;
using FloatProduct = NeonFloatProduct;

}  // namespace
}  // namespace qxc
