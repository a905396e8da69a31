// The kernels for Arm, by instruction set.
#pragma once

#include "kernels.h"

namespace qxc {

extern const Kernels kNeon;
extern const Kernels kNeonDotprod;  // and dot products (Armv8.2-A)
extern const Kernels kNeonI8mm;     // and matrix products of bytes (Armv8.6-A)

MatMulFloatTiles matmul_float_16x32_neon(Code code, int bits);  // what all of them use

MatMulFamily matmul_w2_16x32_neon(Code code);
MatMulFamily matmul_w3_16x32_neon(Code code);
MatMulFamily matmul_w4_16x32_neon(Code code);
MatMulFamily matmul_w5_16x32_neon(Code code);
MatMulFamily matmul_w6_16x32_neon(Code code);
MatMulFamily matmul_w8_16x32_neon(Code code);
MatMulFamily matmul_w2_16x32_neon_dotprod(Code code);
MatMulFamily matmul_w3_16x32_neon_dotprod(Code code);
MatMulFamily matmul_w4_16x32_neon_dotprod(Code code);
MatMulFamily matmul_w5_16x32_neon_dotprod(Code code);
MatMulFamily matmul_w6_16x32_neon_dotprod(Code code);
MatMulFamily matmul_w8_16x32_neon_dotprod(Code code);
MatMulFamily matmul_w2_16x32_neon_i8mm(Code code);
MatMulFamily matmul_w3_16x32_neon_i8mm(Code code);
MatMulFamily matmul_w4_16x32_neon_i8mm(Code code);
MatMulFamily matmul_w5_16x32_neon_i8mm(Code code);
MatMulFamily matmul_w6_16x32_neon_i8mm(Code code);
MatMulFamily matmul_w8_16x32_neon_i8mm(Code code);

}  // namespace qxc
