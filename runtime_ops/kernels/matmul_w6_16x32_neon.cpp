// 6-bit weights, with NEON.
#include "dot_neon.h"

namespace qxc {

MatMulTiles matmul_w6_16x32_neon(Code code, Activation activation) { return matmul_of<6, DotNeon>(code, activation); }

}  // namespace qxc
