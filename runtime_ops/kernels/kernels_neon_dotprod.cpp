// What NEON with dot products (Armv8.2-A) offers.
#include "kernels_neon.h"
#include "silu_gate.h"

namespace qxc {
namespace {

using OfWidth = MatMulTiles (*)(Code code, Activation activation);

OfWidth of_width(int bits) {
  switch (bits) {
    case 2: return matmul_w2_16x32_neon_dotprod;
    case 3: return matmul_w3_16x32_neon_dotprod;
    case 4: return matmul_w4_16x32_neon_dotprod;
    case 5: return matmul_w5_16x32_neon_dotprod;
    case 6: return matmul_w6_16x32_neon_dotprod;
    default: return matmul_w8_16x32_neon_dotprod;
  }
}

MatMulFamily matmul(Code code, int bits) {
  const OfWidth matmul = of_width(bits);
  return {matmul(code, Activation::kA8), matmul(code, Activation::kA16), matmul_float_16x32_neon(code, bits)};
}

}  // namespace

const Kernels kNeonDotprod{"neon_dotprod", quantize_a8_neon, quantize_a16_neon, matmul, widen_neon, silu_gate};

}  // namespace qxc
