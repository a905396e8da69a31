// 2-bit weights, by `vpmaddubsw`.
#include "codes_avx2.h"

namespace qxc {

MatMulFamily matmul_w2_16x32_avx2(Code code) { return matmul_of<2, codes2>(code); }

}  // namespace qxc
