// The kernels for Arm, by instruction set.
#pragma once

#include "kernels.h"

namespace qxc {

extern const Kernels kNeon;
extern const Kernels kNeonDotprod;  // and dot products (Armv8.2-A)
extern const Kernels kNeonI8mm;     // and matrix products of bytes (Armv8.6-A)

// What all of them use.
bool quantize_a8_neon(const float* a, int64_t columns, int64_t row, const QuantizedRows& out);
bool quantize_a16_neon(const float* a, int64_t columns, int64_t row, const QuantizedRows& out);
void widen_neon(const uint16_t* halves, int64_t count, float* values);
MatMulFloatTiles matmul_float_16x32_neon(Code code, int bits);

MatMulTiles matmul_w2_16x32_neon(Code code, Activation activation);
MatMulTiles matmul_w3_16x32_neon(Code code, Activation activation);
MatMulTiles matmul_w4_16x32_neon(Code code, Activation activation);
MatMulTiles matmul_w5_16x32_neon(Code code, Activation activation);
MatMulTiles matmul_w6_16x32_neon(Code code, Activation activation);
MatMulTiles matmul_w8_16x32_neon(Code code, Activation activation);
MatMulTiles matmul_w2_16x32_neon_dotprod(Code code, Activation activation);
MatMulTiles matmul_w3_16x32_neon_dotprod(Code code, Activation activation);
MatMulTiles matmul_w4_16x32_neon_dotprod(Code code, Activation activation);
MatMulTiles matmul_w5_16x32_neon_dotprod(Code code, Activation activation);
MatMulTiles matmul_w6_16x32_neon_dotprod(Code code, Activation activation);
MatMulTiles matmul_w8_16x32_neon_dotprod(Code code, Activation activation);
MatMulTiles matmul_w2_16x32_neon_i8mm(Code code, Activation activation);
MatMulTiles matmul_w3_16x32_neon_i8mm(Code code, Activation activation);
MatMulTiles matmul_w4_16x32_neon_i8mm(Code code, Activation activation);
MatMulTiles matmul_w5_16x32_neon_i8mm(Code code, Activation activation);
MatMulTiles matmul_w6_16x32_neon_i8mm(Code code, Activation activation);
MatMulTiles matmul_w8_16x32_neon_i8mm(Code code, Activation activation);

}  // namespace qxc
