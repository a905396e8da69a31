// 8-bit weights, with NEON.
#include "dot_neon.h"

namespace qxc {

MatMulFamily matmul_w8_16x32_neon(Code code) { return matmul_of<8, DotNeon>(code); }

}  // namespace qxc
