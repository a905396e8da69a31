// The kernels for AVX-512 with VNNI and VBMI.
#pragma once

#include "kernels.h"

namespace qxc {

extern const Kernels kAvx512;

MatMulFamily matmul_w2_16x32_avx512(Code code);
MatMulFamily matmul_w3_16x32_avx512(Code code);
MatMulFamily matmul_w4_16x32_avx512(Code code);
MatMulFamily matmul_w5_16x32_avx512(Code code);
MatMulFamily matmul_w6_16x32_avx512(Code code);
MatMulFamily matmul_w8_16x32_avx512(Code code);

}  // namespace qxc
