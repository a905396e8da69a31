// 5-bit weights, by `vpdpbusd`.
#include "codes_avx2.h"

namespace qxc {

MatMulFamily matmul_w5_16x32_avx_vnni(Code code) { return matmul_of<5, codes5>(code); }

}  // namespace qxc
