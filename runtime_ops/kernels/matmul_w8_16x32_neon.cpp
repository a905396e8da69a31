// 8-bit weights, with NEON.
#include "dot_neon.h"

namespace qxc {

MatMulTiles matmul_w8_16x32_neon(Code code, Activation activation) { return matmul_of<8, DotNeon>(code, activation); }

}  // namespace qxc
