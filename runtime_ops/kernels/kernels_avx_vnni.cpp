// What AVX-VNNI offers.
#include "kernels_avx_vnni.h"

#include "instruction_set.h"
#include "vectors_avx2.h"

namespace qxc {

const Kernels kAvxVnni =
    kernels_of<Avx2Vector, matmul_w2_16x32_avx_vnni, matmul_w3_16x32_avx_vnni, matmul_w4_16x32_avx_vnni,
               matmul_w5_16x32_avx_vnni, matmul_w6_16x32_avx_vnni, matmul_w8_16x32_avx_vnni>("avx_vnni");

}  // namespace qxc
