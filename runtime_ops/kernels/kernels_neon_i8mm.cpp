// What NEON with dot products and matrix products of bytes (Armv8.6-A) offers.
#include "kernels_neon.h"
#include "silu_gate.h"

namespace qxc {
namespace {

using OfWidth = MatMulTiles (*)(Code code, Activation activation);

OfWidth of_width(int bits) {
  switch (bits) {
    case 2: return matmul_w2_16x32_neon_i8mm;
    case 3: return matmul_w3_16x32_neon_i8mm;
    case 4: return matmul_w4_16x32_neon_i8mm;
    case 5: return matmul_w5_16x32_neon_i8mm;
    case 6: return matmul_w6_16x32_neon_i8mm;
    default: return matmul_w8_16x32_neon_i8mm;
  }
}

MatMulFamily matmul(Code code, int bits) {
  const OfWidth matmul = of_width(bits);
  return {matmul(code, Activation::kA8), matmul(code, Activation::kA16), matmul_float_16x32_neon(code, bits)};
}

}  // namespace

const Kernels kNeonI8mm{"neon_i8mm", quantize_a8_neon, quantize_a16_neon, matmul, widen_neon, silu_gate};

}  // namespace qxc
