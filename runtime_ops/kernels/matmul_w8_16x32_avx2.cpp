// 8-bit weights, by `vpmaddubsw`.
#include "codes_avx2.h"

namespace qxc {

MatMulFamily matmul_w8_16x32_avx2(Code code) { return matmul_of<8, codes8>(code); }

}  // namespace qxc
