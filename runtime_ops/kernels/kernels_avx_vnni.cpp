// What AVX2 offers.
#include "kernels_avx_vnni.h"

#include "matmul_avx2.h"
#include "quantize_avx2.h"
#include "silu_gate.h"

namespace qxc {
namespace {

MatMulFamily matmul(Code code, int bits) {
  switch (bits) {
    case 2: return matmul_w2_16x32_avx_vnni(code);
    case 3: return matmul_w3_16x32_avx_vnni(code);
    case 4: return matmul_w4_16x32_avx_vnni(code);
    case 5: return matmul_w5_16x32_avx_vnni(code);
    case 6: return matmul_w6_16x32_avx_vnni(code);
    default: return matmul_w8_16x32_avx_vnni(code);
  }
}

}  // namespace

const Kernels kAvxVnni{"avx_vnni", quantize_a8_avx2, quantize_a16_avx2, matmul, widen_avx2, silu_gate};

}  // namespace qxc
