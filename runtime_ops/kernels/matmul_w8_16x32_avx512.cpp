// 8-bit weights: a line is a step.
#include "tables_avx512.h"

namespace qxc {
namespace {

template <Code code>
struct Integer8 {
  static constexpr Code kCode = code;
  static constexpr int kBits = 8;
  static constexpr int kClasses = classes_of<code, kBits>();
  static constexpr bool kMuchWork = false;

  Integer8(const PackedWeight&, int64_t) {}

  QXC_INLINE void load(const uint8_t* lines, __m512i* values) const {
#pragma GCC unroll 8
    for (int line = 0; line < kBits; ++line) values[line] = load_line(lines + line * kLineBytes);
  }
};

}  // namespace

MatMulFamily matmul_w8_16x32_avx512(Code code) {
  return code == Code::kInt ? family_of<Integer8<Code::kInt>>() : family_of<Integer8<Code::kUInt>>();
}

}  // namespace qxc
