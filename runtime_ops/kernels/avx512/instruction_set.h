// What AVX-512 with VNNI and VBMI hands in.
#pragma once

#include "avx512/blocks.h"
#include "avx512/vectors.h"

namespace qxc {
namespace {

using Vector = Avx512Vector;
template <Activation activation>
using RoundedProduct = Avx512RoundedProduct<activation>;
using FloatProduct = Avx512FloatProduct;

}  // namespace
}  // namespace qxc
