// What this processor has. Instruction sets that were not built in, or that it lacks, have no kernels.
#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>

#include "kernels_avx2.h"
#include "kernels_avx512.h"
#include "kernels_avx_vnni.h"
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>

#include "kernels_neon.h"
#endif

namespace qxc {
namespace {

#if defined(__x86_64__)
// AMD family 19h, Zen 3 and Zen 4 (AMD64 Architecture Programmer's Manual, CPUID leaf 1)
bool is_zen3_or_zen4() {
  __builtin_cpu_init();
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__builtin_cpu_is("amd") || !__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return false;
  return (eax >> 8 & 0xF) + (eax >> 20 & 0xFF) == 0x19;
}

// once, as `cpuid` may take microseconds on a virtual machine; measured on Zen 4, in sessions: 5 to 10 % faster
// without; on Zen 5, bare: 5 to 10 % faster with
const int64_t kStreamPrefetchBytes = is_zen3_or_zen4() ? 0 : 8192;
#else
const int64_t kStreamPrefetchBytes = 0;  // no kernel asks
#endif

}  // namespace

int64_t stream_prefetch_bytes() { return kStreamPrefetchBytes; }

const Kernels* avx2_kernels() {
#if defined(__x86_64__)
  const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return has ? &kAvx2 : nullptr;
#else
  return nullptr;
#endif
}

const Kernels* avx_vnni_kernels() {
#if defined(QXC_AVX_VNNI_AS_AVX512)
  return avx512_kernels() ? &kAvxVnni : nullptr;
#elif defined(__x86_64__)
  // gcc 12 does not know the name: leaf 7, sub-leaf 1, EAX bit 4 (Intel SDM, CPUID)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool has = avx2_kernels() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
  return has ? &kAvxVnni : nullptr;
#else
  return nullptr;
#endif
}

const Kernels* avx512_kernels() {
#if defined(__x86_64__)
  const bool has = avx2_kernels() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
  return has ? &kAvx512 : nullptr;
#else
  return nullptr;
#endif
}

const Kernels* neon_kernels() {
#if defined(__aarch64__)
  return &kNeon;  // every such processor has it
#else
  return nullptr;
#endif
}

const Kernels* neon_dotprod_kernels() {
#if defined(__aarch64__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? &kNeonDotprod : nullptr;
#else
  return nullptr;
#endif
}

const Kernels* neon_i8mm_kernels() {
#if defined(__aarch64__)
  return neon_dotprod_kernels() && getauxval(AT_HWCAP2) & HWCAP2_I8MM ? &kNeonI8mm : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace qxc
