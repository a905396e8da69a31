// What NEON with dot products and matrix products of bytes (Armv8.6-A) offers.
#include "kernels_neon.h"

namespace qxc {
namespace {

MatMulTiles matmul(Code code, int bits, Activation activation) {
  switch (bits) {
    case 2: return matmul_w2_16x32_neon_i8mm(code, activation);
    case 3: return matmul_w3_16x32_neon_i8mm(code, activation);
    case 4: return matmul_w4_16x32_neon_i8mm(code, activation);
    case 5: return matmul_w5_16x32_neon_i8mm(code, activation);
    case 6: return matmul_w6_16x32_neon_i8mm(code, activation);
    default: return matmul_w8_16x32_neon_i8mm(code, activation);
  }
}

}  // namespace

const Kernels kNeonI8mm{"neon_i8mm", quantize_a8_neon, quantize_a16_neon, matmul, matmul_float_16x32_neon, widen_neon};

}  // namespace qxc
