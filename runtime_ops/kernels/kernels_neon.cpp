// What NEON offers.
#include "kernels_neon.h"

namespace qxc {
namespace {

MatMulTiles matmul(Code code, int bits, Activation activation) {
  switch (bits) {
    case 2: return matmul_w2_16x32_neon(code, activation);
    case 3: return matmul_w3_16x32_neon(code, activation);
    case 4: return matmul_w4_16x32_neon(code, activation);
    case 5: return matmul_w5_16x32_neon(code, activation);
    case 6: return matmul_w6_16x32_neon(code, activation);
    default: return matmul_w8_16x32_neon(code, activation);
  }
}

}  // namespace

const Kernels kNeon{"neon", quantize_a8_neon, quantize_a16_neon, matmul, matmul_float_16x32_neon, widen_neon};

}  // namespace qxc
