// Codebooks in registers, for byte permutes. Entries are raised by 128, to be unsigned.
#pragma once

#include "matmul_avx512.h"

namespace qxc {
namespace {

// The codebooks of a tile's rows, or of the tensor.
QXC_INLINE const int8_t* codebook_of(const PackedWeight& weight, int64_t tile, int bits) {
  return weight.codebook + (weight.codebook_per_tensor ? 0 : (tile * kTileRows) << bits);
}

struct alignas(64) Bytes64 {
  uint8_t at[64];
};

template <class Value>
constexpr Bytes64 make_bytes(Value value) {
  Bytes64 bytes{};
  for (int i = 0; i < 64; ++i) bytes.at[i] = static_cast<uint8_t>(value(i));
  return bytes;
}

QXC_INLINE __m512i load_bytes(const Bytes64& bytes) { return _mm512_load_si512(bytes.at); }

// The first `entries` of a codebook, raised by 128; tables are made anew for every tile, so this has to be quick.
template <int entries>
QXC_INLINE __m512i load_entries(const int8_t* book) {
  constexpr __mmask64 mask = entries == 64 ? ~__mmask64{0} : (__mmask64{1} << entries % 64) - 1;
  return _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, book), _mm512_set1_epi8(-128));
}

QXC_INLINE __m512i mask8(int mask) { return _mm512_set1_epi8(static_cast<char>(mask)); }

QXC_INLINE __m512i select(__m512i mask, __m512i yes, __m512i no) {
  return _mm512_ternarylogic_epi32(mask, yes, no, 0xCA);
}

}  // namespace
}  // namespace qxc
