// NEON with dot products and matrix products of bytes (Armv8.6-A).
#include <asm/hwcap.h>
#include <sys/auxv.h>

namespace qxc::neon_i8mm {

bool is_supported() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP && getauxval(AT_HWCAP2) & HWCAP2_I8MM; }

}  // namespace qxc::neon_i8mm
