// 5-bit weights, with NEON.
#include "dot_neon.h"

namespace qxc {

MatMulFamily matmul_w5_16x32_neon(Code code) { return matmul_of<5, DotNeon>(code); }

}  // namespace qxc
