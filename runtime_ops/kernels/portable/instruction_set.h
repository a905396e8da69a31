// What portable C++ hands in.
#pragma once

#include "portable/matmul.h"
#include "portable/vectors.h"

namespace qxc {
namespace {

using Vector = PortableVector;
template <Activation activation>
using RoundedProduct = PortableRoundedProduct<activation>;
using FloatProduct = PortableFloatProduct;

}  // namespace
}  // namespace qxc
