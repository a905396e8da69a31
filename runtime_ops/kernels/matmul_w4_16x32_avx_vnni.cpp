// 4-bit weights, by `vpdpbusd`.
#include "codes_avx2.h"

namespace qxc {

MatMulFamily matmul_w4_16x32_avx_vnni(Code code) { return matmul_of<4, codes4>(code); }

}  // namespace qxc
