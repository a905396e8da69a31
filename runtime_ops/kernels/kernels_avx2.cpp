// What AVX2 with FMA and F16C offers.
#include "kernels_avx2.h"

#include "instruction_set.h"
#include "vectors_avx2.h"

namespace qxc {

const Kernels kAvx2 = kernels_of<Avx2Vector, matmul_w2_16x32_avx2, matmul_w3_16x32_avx2, matmul_w4_16x32_avx2,
                                 matmul_w5_16x32_avx2, matmul_w6_16x32_avx2, matmul_w8_16x32_avx2>("avx2");

}  // namespace qxc
