// 6-bit weights, with NEON and dot products.
#include "dot_neon_dotprod.h"

namespace qxc {

MatMulTiles matmul_w6_16x32_neon_dotprod(Code code, Activation activation) {
  return matmul_of<6, DotProduct>(code, activation);
}

}  // namespace qxc
