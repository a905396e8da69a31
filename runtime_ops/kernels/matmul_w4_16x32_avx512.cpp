// 4-bit weights: line l is steps 2l and 2l + 1, in the low and high halves of its bytes.
#include "tables_avx512.h"

namespace qxc {
namespace {

template <Code code>
struct Integer4 {
  static constexpr Code kCode = code;
  static constexpr int kBits = 4;
  static constexpr int kClasses = classes_of<code, kBits>();
  static constexpr int kLinesPerFarPrefetch = 4;

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
  static constexpr int kLinesPerFarPrefetch = code == Code::kMx ? 1 : 4;

  __m512i table;  // four times over: permutes read 6 bits of an index

  OneTable4(const PackedWeight& weight, int64_t) {
    static constexpr Bytes64 kEntry = make_bytes([](int i) { return i & 15; });
    table =
        _mm512_permutexvar_epi8(load_bytes(kEntry), load_entries<16>(code == Code::kMx ? kTwiceE2M1 : weight.codebook));
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
using Mx4 = OneTable4<Code::kMx>;

struct PerRow4 {
  static constexpr Code kCode = Code::kLut;
  static constexpr int kBits = 4;
  static constexpr int kClasses = 1;
  static constexpr int kLinesPerFarPrefetch = 1;

  // a 128-bit lane is four rows, whose codebooks are four vectors: `vpshufb` looks up a lane's 16 entries
  __m512i row_of_four[4];

  PerRow4(const PackedWeight& weight, int64_t tile) {
    const __m128i* book = reinterpret_cast<const __m128i*>(codebook_of(weight, tile, kBits));
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      __m512i rows = _mm512_castsi128_si512(_mm_loadu_si128(book + r));
      rows = _mm512_inserti32x4(rows, _mm_loadu_si128(book + 4 + r), 1);
      rows = _mm512_inserti32x4(rows, _mm_loadu_si128(book + 8 + r), 2);
      rows = _mm512_inserti32x4(rows, _mm_loadu_si128(book + 12 + r), 3);
      row_of_four[r] = _mm512_xor_si512(rows, _mm512_set1_epi8(-128));
    }
  }

  QXC_INLINE __m512i look_up(__m512i codes) const {
    __m512i entries = _mm512_shuffle_epi8(row_of_four[0], codes);
    entries = _mm512_mask_shuffle_epi8(entries, 0x00F000F000F000F0, row_of_four[1], codes);
    entries = _mm512_mask_shuffle_epi8(entries, 0x0F000F000F000F00, row_of_four[2], codes);
    return _mm512_mask_shuffle_epi8(entries, 0xF000F000F000F000, row_of_four[3], codes);
  }

  QXC_INLINE void load(const uint8_t* lines, __m512i* values) const {
#pragma GCC unroll 4
    for (int line = 0; line < kBits; ++line) {
      const __m512i z = load_line(lines + line * kLineBytes);
      values[2 * line] = look_up(_mm512_and_si512(z, mask8(0x0F)));
      values[2 * line + 1] = look_up(_mm512_and_si512(_mm512_srli_epi32(z, 4), mask8(0x0F)));
    }
  }
};

}  // namespace

MatMulFamily matmul_w4_16x32_avx512(Code code) {
  if (code == Code::kMx) return family_of<Mx4>();
  if (code == Code::kLut) return family_of_codebooks<PerTensor4, PerRow4>();
  return code == Code::kInt ? family_of<Integer4<Code::kInt>>() : family_of<Integer4<Code::kUInt>>();
}

}  // namespace qxc
