// 2-bit weights, with NEON and matrix products of bytes.
#include "dot_neon_i8mm.h"

namespace qxc {

MatMulFamily matmul_w2_16x32_neon_i8mm(Code code) { return matmul_of<2, DotMatrix>(code); }

}  // namespace qxc
