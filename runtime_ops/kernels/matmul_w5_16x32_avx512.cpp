// 5-bit weights: lines 0-3 are the low four bits, as of 4-bit weights; bit q of line 4 is the fifth bit of step q.
#include "tables_avx512.h"

namespace qxc {
namespace {

template <Code code>
struct Integer5 {
  static constexpr Code kCode = code;
  static constexpr int kBits = 5;
  static constexpr int kClasses = classes_of<code, kBits>();
  static constexpr bool kMuchWork = false;

  Integer5(const PackedWeight&, int64_t) {}

  QXC_INLINE void load(const uint8_t* lines, __m512i* values) const {
    const __m512i fifth = load_line(lines + 4 * kLineBytes);
#pragma GCC unroll 4
    for (int line = 0; line < 4; ++line) {
      const __m512i z = load_line(lines + line * kLineBytes);
      const unsigned q = static_cast<unsigned>(2 * line);
      const __m512i even = q < 4 ? _mm512_slli_epi32(fifth, 4 - q) : _mm512_srli_epi32(fifth, q - 4);
      const __m512i odd = q < 3 ? _mm512_slli_epi32(fifth, 3 - q) : _mm512_srli_epi32(fifth, q - 3);
      values[2 * line] = select(mask8(0x0F), z, _mm512_and_si512(even, mask8(0x10)));
      values[2 * line + 1] = select(mask8(0x0F), _mm512_srli_epi32(z, 4), _mm512_and_si512(odd, mask8(0x10)));
    }
  }
};

}  // namespace

MatMulFamily matmul_w5_16x32_avx512(Code code) {
  return code == Code::kInt ? family_of<Integer5<Code::kInt>>() : family_of<Integer5<Code::kUInt>>();
}

}  // namespace qxc
