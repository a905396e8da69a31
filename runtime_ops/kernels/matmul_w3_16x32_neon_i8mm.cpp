// 3-bit weights, with NEON and matrix products of bytes.
#include "dot_neon_i8mm.h"

namespace qxc {

MatMulTiles matmul_w3_16x32_neon_i8mm(Code code, Activation activation) {
  return matmul_of<3, DotMatrix>(code, activation);
}

}  // namespace qxc
