// What this processor has. Instruction sets that were not built in, or that it lacks, have no kernels.
#include "kernels.h"

#if defined(__x86_64__)
#include "kernels_avx2.h"
#include "kernels_avx512.h"
#endif

namespace qxc {

const Kernels* avx2_kernels() {
#if defined(__x86_64__)
  const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return has ? &kAvx2 : nullptr;
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

}  // namespace qxc
