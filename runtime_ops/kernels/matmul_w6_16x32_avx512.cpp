// 6-bit weights: lines 0-3 are the low four bits, as of 4-bit weights; lines 4-5 the upper two, as of 2-bit weights.
#include "tables_avx512.h"

namespace qxc {
namespace {

template <Code code>
struct Integer6 {
  static constexpr Code kCode = code;
  static constexpr int kBits = 6;
  static constexpr int kClasses = classes_of<code, kBits>();
  static constexpr bool kMuchWork = false;

  Integer6(const PackedWeight&, int64_t) {}

  QXC_INLINE void load(const uint8_t* lines, __m512i* values) const {
    const __m512i upper[2] = {load_line(lines + 4 * kLineBytes), load_line(lines + 5 * kLineBytes)};
#pragma GCC unroll 4
    for (int line = 0; line < 4; ++line) {
      const __m512i z = load_line(lines + line * kLineBytes);
      const __m512i u = upper[line / 2];  // bits 0-3 or 4-7 of its bytes
      const __m512i even = line % 2 ? u : _mm512_slli_epi32(u, 4);
      const __m512i odd = line % 2 ? _mm512_srli_epi32(u, 2) : _mm512_slli_epi32(u, 2);
      values[2 * line] = select(mask8(0x0F), z, _mm512_and_si512(even, mask8(0x30)));
      values[2 * line + 1] = select(mask8(0x0F), _mm512_srli_epi32(z, 4), _mm512_and_si512(odd, mask8(0x30)));
    }
  }
};

}  // namespace

MatMulFamily matmul_w6_16x32_avx512(Code code) {
  return code == Code::kInt ? family_of<Integer6<Code::kInt>>() : family_of<Integer6<Code::kUInt>>();
}

}  // namespace qxc
