// 3-bit weights, with NEON.
#include "dot_neon.h"

namespace qxc {

MatMulTiles matmul_w3_16x32_neon(Code code, Activation activation) { return matmul_of<3, DotNeon>(code, activation); }

}  // namespace qxc
