// 6-bit weights, by `vpmaddubsw`.
#include "codes_avx2.h"

namespace qxc {

MatMulFamily matmul_w6_16x32_avx2(Code code) { return matmul_of<6, codes6>(code); }

}  // namespace qxc
