// Codebooks in registers, for byte permutes. Entries are raised by 128, to be unsigned.
#pragma once

#include "matmul_avx512.h"

namespace qxc {
namespace {

// The codebooks of a tile's rows, or of the tensor.
QXC_INLINE const int8_t* codebook_of(const PackedWeight& weight, int64_t tile, int bits) {
  return weight.codebook + (weight.codebook_per_tensor ? 0 : (tile * kTileRows) << bits);
}

// A table of 64 bytes: entry i is book[index(i)].
template <class Index>
QXC_INLINE __m512i make_table(const int8_t* book, Index index) {
  alignas(64) uint8_t bytes[64];
  for (int i = 0; i < 64; ++i) bytes[i] = static_cast<uint8_t>(book[index(i)] + 128);
  return _mm512_load_si512(bytes);
}

// Every byte's row number (its lane of 4 bytes), through `place`.
template <class Place>
QXC_INLINE __m512i row_bits(Place place) {
  alignas(64) uint8_t bytes[64];
  for (int i = 0; i < 64; ++i) bytes[i] = static_cast<uint8_t>(place(i / 4));
  return _mm512_load_si512(bytes);
}

QXC_INLINE __m512i mask8(int mask) { return _mm512_set1_epi8(static_cast<char>(mask)); }

QXC_INLINE __m512i select(__m512i mask, __m512i yes, __m512i no) {
  return _mm512_ternarylogic_epi32(mask, yes, no, 0xCA);
}

}  // namespace
}  // namespace qxc
