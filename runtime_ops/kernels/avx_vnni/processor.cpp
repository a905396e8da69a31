// AVX-VNNI, besides what AVX2's kernels need.
#include <cpuid.h>

namespace qxc::avx2 {
bool is_supported();
}

namespace qxc::avx512 {
bool is_supported();
}

namespace qxc::avx_vnni {

bool is_supported() {
#if defined(QXC_AVX_VNNI_AS_AVX512)
  return avx512::is_supported();
#else
  // gcc 12 does not know the name: leaf 7, sub-leaf 1, EAX bit 4 (Intel SDM, CPUID)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return avx2::is_supported() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
#endif
}

}  // namespace qxc::avx_vnni
