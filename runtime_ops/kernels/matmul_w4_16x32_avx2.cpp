// 4-bit weights, by `vpmaddubsw`.
#include "codes_avx2.h"

namespace qxc {

MatMulFamily matmul_w4_16x32_avx2(Code code) { return matmul_of<4, codes4>(code); }

}  // namespace qxc
