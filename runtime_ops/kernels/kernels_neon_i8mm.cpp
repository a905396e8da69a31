// What NEON with dot products and matrix products of bytes (Armv8.6-A) offers.
#include "instruction_set.h"
#include "kernels_neon.h"
#include "vectors_neon.h"

namespace qxc {

const Kernels kNeonI8mm =
    kernels_of<NeonVector, matmul_w2_16x32_neon_i8mm, matmul_w3_16x32_neon_i8mm, matmul_w4_16x32_neon_i8mm,
               matmul_w5_16x32_neon_i8mm, matmul_w6_16x32_neon_i8mm, matmul_w8_16x32_neon_i8mm>("neon_i8mm");

}  // namespace qxc
