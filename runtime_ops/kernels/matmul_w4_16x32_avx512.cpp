// 4-bit weights: line l is steps 2l and 2l + 1, in the low and high halves of its bytes.
#include "tables_avx512.h"

namespace qxc {
namespace {

template <Code code>
struct Integer4 {
  static constexpr Code kCode = code;
  static constexpr int kBits = 4;
  static constexpr int kClasses = classes_of<code, kBits>();
  static constexpr bool kMuchWork = false;

  Integer4(const PackedWeight&, int64_t) {}

  QXC_INLINE void load(const uint8_t* lines, __m512i* values) const {
#pragma GCC unroll 4
    for (int line = 0; line < kBits; ++line) {
      const __m512i z = load_line(lines + line * kLineBytes);
      values[2 * line] = _mm512_and_si512(z, mask8(0x0F));
      values[2 * line + 1] = _mm512_and_si512(z, mask8(0xF0));
    }
  }
};

// One table of 16 entries for the tensor: a codebook, or the numbers of E2M1.
template <Code code>
struct OneTable4 {
  static constexpr Code kCode = code;
  static constexpr int kBits = 4;
  static constexpr int kClasses = 1;
  static constexpr bool kMuchWork = code == Code::kFp;

  __m512i table;  // four times over: permutes read 6 bits of an index

  OneTable4(const PackedWeight& weight, int64_t) {
    static constexpr Bytes64 kEntry = make_bytes([](int i) { return i & 15; });
    table =
        _mm512_permutexvar_epi8(load_bytes(kEntry), load_entries<16>(code == Code::kFp ? kTwiceE2M1 : weight.codebook));
  }

  QXC_INLINE void load(const uint8_t* lines, __m512i* values) const {
#pragma GCC unroll 4
    for (int line = 0; line < kBits; ++line) {
      const __m512i z = load_line(lines + line * kLineBytes);
      values[2 * line] = _mm512_permutexvar_epi8(z, table);
      values[2 * line + 1] = _mm512_permutexvar_epi8(_mm512_srli_epi32(z, 4), table);
    }
  }
};

using PerTensor4 = OneTable4<Code::kLut>;
using Mx4 = OneTable4<Code::kFp>;

struct PerRow4 {
  static constexpr Code kCode = Code::kLut;
  static constexpr int kBits = 4;
  static constexpr int kClasses = 1;
  static constexpr bool kMuchWork = true;

  // an index has 7 bits, a code and the number of a row among eight: two tables, each for half of a line
  __m512i lower[2], upper[2], row;

  PerRow4(const PackedWeight& weight, int64_t tile) {
    static constexpr Bytes64 kRow = make_bytes([](int i) { return (i / 4 & 7) << 4; });
    const int8_t* book = codebook_of(weight, tile, kBits);
    lower[0] = load_entries<64>(book);
    lower[1] = load_entries<64>(book + 64);
    upper[0] = load_entries<64>(book + 128);
    upper[1] = load_entries<64>(book + 192);
    row = load_bytes(kRow);
  }

  QXC_INLINE __m512i look_up(__m512i codes) const {
    const __m512i index = select(mask8(0x0F), codes, row);
    // what the first look-up leaves out is still the index
    const __m512i half = _mm512_mask2_permutex2var_epi8(lower[0], index, 0x00000000FFFFFFFF, lower[1]);
    return _mm512_mask2_permutex2var_epi8(upper[0], half, 0xFFFFFFFF00000000, upper[1]);
  }

  QXC_INLINE void load(const uint8_t* lines, __m512i* values) const {
#pragma GCC unroll 4
    for (int line = 0; line < kBits; ++line) {
      const __m512i z = load_line(lines + line * kLineBytes);
      values[2 * line] = look_up(z);
      values[2 * line + 1] = look_up(_mm512_srli_epi32(z, 4));
    }
  }
};

}  // namespace

MatMulFamily matmul_w4_16x32_avx512(Code code) {
  if (code == Code::kFp) return family_of<Mx4>();
  if (code == Code::kLut) return family_of_codebooks<PerTensor4, PerRow4>();
  return code == Code::kInt ? family_of<Integer4<Code::kInt>>() : family_of<Integer4<Code::kUInt>>();
}

}  // namespace qxc
