// What AVX2 with FMA and F16C hands in.
#pragma once

#include "avx2/blocks.h"
#include "avx2/vectors.h"

namespace qxc {
namespace {

using Vector = Avx2Vector;
template <Activation activation>
using RoundedProduct = Avx2RoundedProduct<activation>;
using FloatProduct = Avx2FloatProduct;

}  // namespace
}  // namespace qxc
