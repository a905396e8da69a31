// AVX2 with FMA and F16C.
namespace qxc::avx2 {

bool is_supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

}  // namespace qxc::avx2
