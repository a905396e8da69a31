// 2-bit weights, with NEON.
#include "dot_neon.h"

namespace qxc {

MatMulFamily matmul_w2_16x32_neon(Code code) { return matmul_of<2, DotNeon>(code); }

}  // namespace qxc
