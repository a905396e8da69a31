// 6-bit weights, by `vpdpbusd`.
#include "codes_avx2.h"

namespace qxc {

MatMulFamily matmul_w6_16x32_avx_vnni(Code code) { return matmul_of<6, codes6>(code); }

}  // namespace qxc
