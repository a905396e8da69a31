// A format's products out of an instruction set's Blocks, which it defines, and of a Product: a class whose
// `tiles<Block>` is a MatMulTiles or a MatMulFloatTiles, and `Rows` what that takes as A.
#pragma once

#include "kernels.h"

namespace qxc {
namespace {

// A Block turns a block's codes into the bytes that are multiplied:
template <qxc_code code, int bits>
struct Integer;  // codes as they are
template <qxc_code code, int bits>
struct PerTensor;  // entries of one table: a codebook, or E2M1
template <int bits>
struct PerRow;  // entries of a codebook for every row

// Which kind of codebook a weight has shows only in its tensors.
template <class Product, int bits>
void codebook_tiles(const PackedWeight& weight, const typename Product::Rows& a, int64_t first, int64_t last,
                    const Output& out) {
  if (weight.codebook_per_tensor) return Product::template tiles<PerTensor<QXC_LUT, bits>>(weight, a, first, last, out);
  Product::template tiles<PerRow<bits>>(weight, a, first, last, out);
}

template <class Product, int bits>
auto tiles_of(qxc_code code) {
  if constexpr (bits == 4) {
    if (code == QXC_FP) return Product::template tiles<PerTensor<QXC_FP, bits>>;
  }
  if constexpr (bits <= 4) {
    if (code == QXC_LUT) return codebook_tiles<Product, bits>;
  }
  return code == QXC_INT ? Product::template tiles<Integer<QXC_INT, bits>>
                         : Product::template tiles<Integer<QXC_UINT, bits>>;
}

}  // namespace
}  // namespace qxc
