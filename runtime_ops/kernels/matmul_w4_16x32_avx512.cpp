// 4-bit weights: line l is steps 2l and 2l + 1, in the low and high halves of its bytes.
#include "tables_avx512.h"

namespace qxc {
namespace {

template <Code code>
struct Integer4 {
  static constexpr Code kCode = code;
  static constexpr int kBits = 4;
  static constexpr int kClasses = classes_of<code, kBits>();

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

struct PerTensor4 {
  static constexpr Code kCode = Code::kLut;
  static constexpr int kBits = 4;
  static constexpr int kClasses = 1;

  __m512i table;  // four times over: permutes read 6 bits of an index

  PerTensor4(const PackedWeight& weight, int64_t) : table(make_table(weight.codebook, [](int i) { return i & 15; })) {}

  QXC_INLINE void load(const uint8_t* lines, __m512i* values) const {
#pragma GCC unroll 4
    for (int line = 0; line < kBits; ++line) {
      const __m512i z = load_line(lines + line * kLineBytes);
      values[2 * line] = _mm512_permutexvar_epi8(z, table);
      values[2 * line + 1] = _mm512_permutexvar_epi8(_mm512_srli_epi32(z, 4), table);
    }
  }
};

struct PerRow4 {
  static constexpr Code kCode = Code::kLut;
  static constexpr int kBits = 4;
  static constexpr int kClasses = 1;

  // 256 entries in two tables of 128: the lower and the upper half of every row's codebook
  __m512i lower[2], upper[2], row;

  PerRow4(const PackedWeight& weight, int64_t tile) : row(row_bits([](int row) { return row << 3; })) {
    const int8_t* book = codebook_of(weight, tile, kBits);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      lower[half] = make_table(book, [half](int i) { return (8 * half + i / 8) << 4 | (i & 7); });
      upper[half] = make_table(book, [half](int i) { return (8 * half + i / 8) << 4 | 8 | (i & 7); });
    }
  }

  QXC_INLINE __m512i look_up(__m512i codes) const {
    const __m512i index = select(mask8(0x07), codes, row);
    const __mmask64 is_upper = _mm512_test_epi8_mask(codes, mask8(0x08));
    return _mm512_mask_blend_epi8(is_upper, _mm512_permutex2var_epi8(lower[0], index, lower[1]),
                                  _mm512_permutex2var_epi8(upper[0], index, upper[1]));
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

MatMulTiles matmul_w4_16x32_avx512(Code code, Activation activation) {
  if (code == Code::kInt) return of_activation<Integer4<Code::kInt>>(activation);
  if (code == Code::kUInt) return of_activation<Integer4<Code::kUInt>>(activation);
  return of_codebook<PerTensor4, PerRow4>(activation);
}

}  // namespace qxc
