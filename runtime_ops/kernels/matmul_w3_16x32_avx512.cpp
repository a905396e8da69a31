// 3-bit weights: the low six bits of line l are steps 2l and 2l + 1; the three lines' top bits are steps 6 and 7.
#include "tables_avx512.h"

namespace qxc {
namespace {

// Steps 2p and 2p + 1 in bits 0-2 and 3-5 of every byte of pairs[p]; bits 6-7 are anything.
QXC_INLINE void load_pairs(const uint8_t* lines, __m512i* pairs) {
  const __m512i z0 = load_line(lines), z1 = load_line(lines + kLineBytes), z2 = load_line(lines + 2 * kLineBytes);
  const __m512i upper = select(mask8(0x0C), _mm512_srli_epi32(z1, 4), _mm512_srli_epi32(z2, 2));
  pairs[0] = z0;
  pairs[1] = z1;
  pairs[2] = z2;
  pairs[3] = select(mask8(0x03), _mm512_srli_epi32(z0, 6), upper);
}

template <Code code>
struct Integer3 {
  static constexpr Code kCode = code;
  static constexpr int kBits = 3;
  static constexpr int kClasses = classes_of<code, kBits>();
  static constexpr bool kMuchWork = false;

  Integer3(const PackedWeight&, int64_t) {}

  QXC_INLINE void load(const uint8_t* lines, __m512i* values) const {
    __m512i pairs[4];
    load_pairs(lines, pairs);
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {
      values[2 * p] = _mm512_and_si512(pairs[p], mask8(0x07));
      values[2 * p + 1] = _mm512_and_si512(pairs[p], mask8(0x38));
    }
  }
};

struct PerTensor3 {
  static constexpr Code kCode = Code::kLut;
  static constexpr int kBits = 3;
  static constexpr int kClasses = 1;
  static constexpr bool kMuchWork = false;

  // permutes read the low 6 bits of an index: a table for each code in them
  __m512i even, odd;

  PerTensor3(const PackedWeight& weight, int64_t) {
    static constexpr Bytes64 kEven = make_bytes([](int i) { return i & 7; });
    static constexpr Bytes64 kOdd = make_bytes([](int i) { return i >> 3; });
    const __m512i book = load_entries<8>(weight.codebook);
    even = _mm512_permutexvar_epi8(load_bytes(kEven), book);
    odd = _mm512_permutexvar_epi8(load_bytes(kOdd), book);
  }

  QXC_INLINE void load(const uint8_t* lines, __m512i* values) const {
    __m512i pairs[4];
    load_pairs(lines, pairs);
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {
      values[2 * p] = _mm512_permutexvar_epi8(pairs[p], even);
      values[2 * p + 1] = _mm512_permutexvar_epi8(pairs[p], odd);
    }
  }
};

struct PerRow3 {
  static constexpr Code kCode = Code::kLut;
  static constexpr int kBits = 3;
  static constexpr int kClasses = 1;
  static constexpr bool kMuchWork = true;

  // an index has 7 bits: a code where it lies, and its row's number around it
  __m512i even[2], odd[2], even_row, odd_row;

  PerRow3(const PackedWeight& weight, int64_t tile) {
    static constexpr Bytes64 kOddLower = make_bytes([](int i) { return (i & 7) << 3 | i >> 3; });
    static constexpr Bytes64 kOddUpper = make_bytes([](int i) { return ((i & 7) + 8) << 3 | i >> 3; });
    static constexpr Bytes64 kEvenRow = make_bytes([](int i) { return i / 4 << 3; });
    static constexpr Bytes64 kOddRow = make_bytes([](int i) { return (i / 4 & 7) | (i / 4 >> 3) << 6; });
    const int8_t* book = codebook_of(weight, tile, kBits);
    even[0] = load_entries<64>(book);
    even[1] = load_entries<64>(book + 64);
    odd[0] = _mm512_permutex2var_epi8(even[0], load_bytes(kOddLower), even[1]);
    odd[1] = _mm512_permutex2var_epi8(even[0], load_bytes(kOddUpper), even[1]);
    even_row = load_bytes(kEvenRow);
    odd_row = load_bytes(kOddRow);
  }

  QXC_INLINE void load(const uint8_t* lines, __m512i* values) const {
    __m512i pairs[4];
    load_pairs(lines, pairs);
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {
      const __m512i even_index = select(mask8(0x07), pairs[p], even_row);
      const __m512i odd_index = select(mask8(0x38), pairs[p], odd_row);
      values[2 * p] = _mm512_permutex2var_epi8(even[0], even_index, even[1]);
      values[2 * p + 1] = _mm512_permutex2var_epi8(odd[0], odd_index, odd[1]);
    }
  }
};

}  // namespace

MatMulFamily matmul_w3_16x32_avx512(Code code) {
  if (code == Code::kLut) return family_of_codebooks<PerTensor3, PerRow3>();
  return code == Code::kInt ? family_of<Integer3<Code::kInt>>() : family_of<Integer3<Code::kUInt>>();
}

}  // namespace qxc
