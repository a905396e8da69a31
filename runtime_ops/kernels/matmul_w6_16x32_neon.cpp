// 6-bit weights, with NEON.
#include "dot_neon.h"

namespace qxc {

MatMulFamily matmul_w6_16x32_neon(Code code) { return matmul_of<6, DotNeon>(code); }

}  // namespace qxc
