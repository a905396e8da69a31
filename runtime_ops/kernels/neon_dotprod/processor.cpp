// NEON with dot products (Armv8.2-A).
#include <asm/hwcap.h>
#include <sys/auxv.h>

namespace qxc::neon_dotprod {

bool is_supported() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }

}  // namespace qxc::neon_dotprod
