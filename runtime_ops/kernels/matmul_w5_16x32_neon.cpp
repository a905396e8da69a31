// 5-bit weights, with NEON.
#include "dot_neon.h"

namespace qxc {

MatMulTiles matmul_w5_16x32_neon(Code code, Activation activation) { return matmul_of<5, DotNeon>(code, activation); }

}  // namespace qxc
