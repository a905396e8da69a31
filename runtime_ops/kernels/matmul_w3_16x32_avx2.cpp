// 3-bit weights, by `vpmaddubsw`.
#include "codes_avx2.h"

namespace qxc {

MatMulFamily matmul_w3_16x32_avx2(Code code) { return matmul_of<3, codes3>(code); }

}  // namespace qxc
