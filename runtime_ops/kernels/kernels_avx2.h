// The kernels for AVX2 with FMA and F16C.
#pragma once

#include "kernels.h"

namespace qxc {

extern const Kernels kAvx2;

MatMulFamily matmul_w2_16x32_avx2(Code code);
MatMulFamily matmul_w3_16x32_avx2(Code code);
MatMulFamily matmul_w4_16x32_avx2(Code code);
MatMulFamily matmul_w5_16x32_avx2(Code code);
MatMulFamily matmul_w6_16x32_avx2(Code code);
MatMulFamily matmul_w8_16x32_avx2(Code code);

}  // namespace qxc
