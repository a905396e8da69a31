// 4-bit weights, with NEON.
#include "dot_neon.h"

namespace qxc {

MatMulFamily matmul_w4_16x32_neon(Code code) { return matmul_of<4, DotNeon>(code); }

}  // namespace qxc
