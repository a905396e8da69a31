// What AVX2 offers.
#include "kernels_avx2.h"

#include "matmul_avx2.h"
#include "quantize_avx2.h"

namespace qxc {
namespace {

MatMulTiles matmul(Code code, int bits, Activation activation) {
  switch (bits) {
    case 2: return matmul_w2_16x32_avx2(code, activation);
    case 3: return matmul_w3_16x32_avx2(code, activation);
    case 4: return matmul_w4_16x32_avx2(code, activation);
    case 5: return matmul_w5_16x32_avx2(code, activation);
    case 6: return matmul_w6_16x32_avx2(code, activation);
    default: return matmul_w8_16x32_avx2(code, activation);
  }
}

}  // namespace

const Kernels kAvx2{"avx2", quantize_a8_avx2, quantize_a16_avx2, matmul};

}  // namespace qxc
