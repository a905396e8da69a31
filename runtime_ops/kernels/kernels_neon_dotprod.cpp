// What NEON with dot products (Armv8.2-A) offers.
#include "instruction_set.h"
#include "kernels_neon.h"
#include "vectors_neon.h"

namespace qxc {

const Kernels kNeonDotprod =
    kernels_of<NeonVector, matmul_w2_16x32_neon_dotprod, matmul_w3_16x32_neon_dotprod, matmul_w4_16x32_neon_dotprod,
               matmul_w5_16x32_neon_dotprod, matmul_w6_16x32_neon_dotprod, matmul_w8_16x32_neon_dotprod>(
        "neon_dotprod");

}  // namespace qxc
