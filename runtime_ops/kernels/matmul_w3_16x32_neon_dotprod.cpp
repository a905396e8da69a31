// 3-bit weights, with NEON and dot products.
#include "dot_neon_dotprod.h"

namespace qxc {

MatMulTiles matmul_w3_16x32_neon_dotprod(Code code, Activation activation) {
  return matmul_of<3, DotProduct>(code, activation);
}

}  // namespace qxc
