// What AVX-512 with VNNI and VBMI offers.
#include "kernels_avx512.h"

#include "instruction_set.h"
#include "vectors_avx512.h"

namespace qxc {

const Kernels kAvx512 = kernels_of<Avx512Vector, matmul_w2_16x32_avx512, matmul_w3_16x32_avx512, matmul_w4_16x32_avx512,
                                   matmul_w5_16x32_avx512, matmul_w6_16x32_avx512, matmul_w8_16x32_avx512>("avx512");

}  // namespace qxc
