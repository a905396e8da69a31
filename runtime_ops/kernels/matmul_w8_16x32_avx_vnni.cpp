// 8-bit weights, by `vpdpbusd`.
#include "codes_avx2.h"

namespace qxc {

MatMulFamily matmul_w8_16x32_avx_vnni(Code code) { return matmul_of<8, codes8>(code); }

}  // namespace qxc
