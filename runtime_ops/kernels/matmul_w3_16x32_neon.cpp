// 3-bit weights, with NEON.
#include "dot_neon.h"

namespace qxc {

MatMulFamily matmul_w3_16x32_neon(Code code) { return matmul_of<3, DotNeon>(code); }

}  // namespace qxc
