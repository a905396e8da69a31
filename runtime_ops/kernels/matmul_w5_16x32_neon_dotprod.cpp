// 5-bit weights, with NEON and dot products.
#include "dot_neon_dotprod.h"

namespace qxc {

MatMulFamily matmul_w5_16x32_neon_dotprod(Code code) { return matmul_of<5, DotProduct>(code); }

}  // namespace qxc
