// What NEON offers.
#include "kernels_neon.h"

#include "instruction_set.h"
#include "vectors_neon.h"

namespace qxc {

const Kernels kNeon = kernels_of<NeonVector, matmul_w2_16x32_neon, matmul_w3_16x32_neon, matmul_w4_16x32_neon,
                                 matmul_w5_16x32_neon, matmul_w6_16x32_neon, matmul_w8_16x32_neon>("neon");

}  // namespace qxc
