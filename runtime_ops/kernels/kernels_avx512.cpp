// What AVX-512 with VNNI and VBMI offers.
#include "kernels_avx512.h"

#include "matmul_avx512.h"
#include "quantize_avx512.h"
#include "silu_gate.h"

namespace qxc {
namespace {

MatMulFamily matmul(Code code, int bits) {
  switch (bits) {
    case 2: return matmul_w2_16x32_avx512(code);
    case 3: return matmul_w3_16x32_avx512(code);
    case 4: return matmul_w4_16x32_avx512(code);
    case 5: return matmul_w5_16x32_avx512(code);
    case 6: return matmul_w6_16x32_avx512(code);
    default: return matmul_w8_16x32_avx512(code);
  }
}

}  // namespace

const Kernels kAvx512{"avx512", quantize_a8_avx512, quantize_a16_avx512, matmul, widen_avx512, silu_gate};

}  // namespace qxc
