// The kernels for AVX-VNNI, besides what those for AVX2 need.
#pragma once

#include "kernels.h"

namespace qxc {

extern const Kernels kAvxVnni;

MatMulFamily matmul_w2_16x32_avx_vnni(Code code);
MatMulFamily matmul_w3_16x32_avx_vnni(Code code);
MatMulFamily matmul_w4_16x32_avx_vnni(Code code);
MatMulFamily matmul_w5_16x32_avx_vnni(Code code);
MatMulFamily matmul_w6_16x32_avx_vnni(Code code);
MatMulFamily matmul_w8_16x32_avx_vnni(Code code);

}  // namespace qxc
