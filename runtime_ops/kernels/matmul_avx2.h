// y[M, 16] = a8 or a16 [M, K] x codes [16, K], with AVX2: what the kernels of all bit widths share.
//
// A `Block` policy turns half the lines of one block (8 rows) into eight vectors of bytes, one a step of 4 inputs:
// byte 4 * row + j of vector q belongs to input 4 * q + j. A unit of weights is decoded once, then multiplied with all
// rows of A by `vpmaddubsw` and `vpmaddwd`. The first adds pairs of products in 16 bits with saturation. Codes of up to
// 6 bits cannot reach it, even several steps added up; other bytes are signed, and multiplied as |w| and a * sign(w).
#pragma once

#include <immintrin.h>

#include <type_traits>

#include "kernels.h"
#include "scalar.h"

namespace qxc {
namespace {

#define QXC_INLINE inline __attribute__((always_inline))

constexpr int64_t kPrefetchBytes = 8192;
constexpr int kRowsPerPass = 64;
constexpr int kLargestUnit = 256;
constexpr int kHalfBytes = kLineBytes / 2;
constexpr int kHalfRows = kTileRows / 2;

template <Code code, int bits>
constexpr bool signed_bytes() {
  return code == Code::kLut || bits == 8;
}

// How many steps of products 16 bits can hold: each adds at most 2 * 127 * (2^bits - 1), or 2 * 127 * 128 if signed.
template <Code code, int bits>
constexpr int steps_in_16_bits() {
  return signed_bytes<code, bits>() ? 1 : bits <= 4 ? 8 : bits == 5 ? 4 : 2;
}

// What the bytes stand above the numbers, besides a zero point.
template <Code code, int bits>
constexpr int32_t offset_of() {
  return signed_bytes<code, bits>() ? 0 : 1 << (bits - 1);
}

QXC_INLINE __m256i load_half(const uint8_t* bytes) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
}

QXC_INLINE __m256i mask8(int mask) { return _mm256_set1_epi8(static_cast<char>(mask)); }

QXC_INLINE __m256i broadcast4(const int8_t* a) {
  int32_t four;
  std::memcpy(&four, a, sizeof four);
  return _mm256_set1_epi32(four);
}

template <Code code, int bits>
QXC_INLINE __m256i products(__m256i values, __m256i magnitudes, __m256i a) {
  if constexpr (signed_bytes<code, bits>()) return _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(a, values));
  return _mm256_maddubs_epi16(values, a);
}

// The bytes of one unit of one tile: [2 halves, columns / 4, 32].
template <class Block>
QXC_INLINE void decode_unit(const Block& block, const PackedWeight& weight, int64_t tile, int64_t first_column,
                            int64_t columns, uint8_t (*bytes)[kLargestUnit / 4 * kHalfBytes]) {
  const int first_step = static_cast<int>(first_column % kBlockColumns) / 4;
  const uint8_t* lines =
      weight.packed + (tile * weight.blocks + first_column / kBlockColumns) * Block::kBits * kLineBytes;
  for (int64_t column = 0; column < columns; column += kBlockColumns) {
    const int steps = static_cast<int>(smaller(columns - column, kBlockColumns)) / 4;
    for (int line = 0; line < Block::kBits; ++line) {
      const uintptr_t ahead = reinterpret_cast<uintptr_t>(lines + line * kLineBytes) + kPrefetchBytes;
      _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T0);
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m256i values[kSteps];
      block.load(lines + half * kHalfBytes, half, values);
      uint8_t* to = bytes[half] + column / 4 * kHalfBytes;
#pragma GCC unroll 8
      for (int step = 0; step < kSteps; ++step) {
        if (step < first_step || step >= first_step + steps) continue;
        _mm256_store_si256(reinterpret_cast<__m256i*>(to + (step - first_step) * kHalfBytes), values[step]);
      }
    }
    lines += Block::kBits * kLineBytes;
  }
}

// One half of a tile times `rows` rows of A: totals[m] = sum of bytes * a over a unit.
template <Code code, int bits, int rows>
QXC_INLINE void add_products(const uint8_t* bytes, const int8_t* a, int64_t stride, int64_t columns, __m256i* totals) {
  constexpr int64_t kChain = 4 * steps_in_16_bits<code, bits>();
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t k = 0; k < columns; k += kChain) {
    __m256i sums[rows];
#pragma GCC unroll 8
    for (int64_t i = 0; i < kChain; i += 4) {
      if (k + i >= columns) break;
      const __m256i values = _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes + (k + i) / 4 * kHalfBytes));
      const __m256i magnitudes = _mm256_abs_epi8(values);
#pragma GCC unroll 4
      for (int m = 0; m < rows; ++m) {
        const __m256i product = products<code, bits>(values, magnitudes, broadcast4(a + m * stride + k + i));
        sums[m] = i == 0 ? product : _mm256_add_epi16(sums[m], product);
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < rows; ++m) totals[m] = _mm256_add_epi32(totals[m], _mm256_madd_epi16(sums[m], ones));
  }
}

template <Code code, int bits, Activation activation, int rows>
QXC_INLINE void multiply_unit(const PackedWeight& weight, const QuantizedRows& a, int64_t tile, int64_t row,
                              int64_t unit, int64_t columns, const uint8_t (*bytes)[kLargestUnit / 4 * kHalfBytes],
                              float (*y)[kTileRows]) {
  const int64_t first_column = unit * a.unit;
  const int64_t from = row * a.columns + first_column;
  const int64_t at_group = (tile * weight.groups + first_column / weight.group_size) * kTileRows;
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    __m256i totals[rows];
#pragma GCC unroll 4
    for (int m = 0; m < rows; ++m) totals[m] = _mm256_setzero_si256();
    add_products<code, bits, rows>(bytes[half], a.high + from, a.columns, columns, totals);
    if constexpr (activation == Activation::kA16) {
#pragma GCC unroll 4
      for (int m = 0; m < rows; ++m) totals[m] = _mm256_slli_epi32(totals[m], 8);
      add_products<code, bits, rows>(bytes[half], a.low + from, a.columns, columns, totals);
    }
    const int64_t at = at_group + half * kHalfRows;
    const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weight.scales + at)));
    __m256 zeros = _mm256_setzero_ps();
    if constexpr (code == Code::kUInt) {
      const __m128i zero_points = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(weight.zero_points + at));
      const __m256i middle = _mm256_set1_epi32(1 << (bits - 1));
      zeros = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_cvtepu8_epi32(zero_points), middle));
    }
#pragma GCC unroll 4
    for (int m = 0; m < rows; ++m) {
      const int64_t of_unit = (row + m) * a.units + unit;
      int32_t sum = a.high_sums[of_unit];
      if constexpr (activation == Activation::kA16) sum = 256 * sum + a.low_sums[of_unit];
      const __m256i total = _mm256_sub_epi32(totals[m], _mm256_set1_epi32(offset_of<code, bits>() * sum));
      __m256 product = _mm256_cvtepi32_ps(total);
      if constexpr (activation == Activation::kA16) product = _mm256_mul_ps(product, _mm256_set1_ps(a.scales[of_unit]));
      if constexpr (code == Code::kUInt) product = _mm256_fnmadd_ps(zeros, _mm256_set1_ps(a.sums[of_unit]), product);
      float* to = y[m] + half * kHalfRows;
      _mm256_store_ps(to, _mm256_fmadd_ps(product, scale, _mm256_load_ps(to)));
    }
  }
}

template <class Block, Activation activation>
void matmul_pass(const PackedWeight& weight, const QuantizedRows& a, int64_t tile, int64_t first_row, int64_t rows,
                 const Output& out) {
  const Block block(weight, tile);
  alignas(32) uint8_t bytes[2][kLargestUnit / 4 * kHalfBytes];
  alignas(32) float y[kRowsPerPass][kTileRows];
  std::memset(y, 0, static_cast<size_t>(rows) * sizeof y[0]);
  for (int64_t unit = 0; unit < a.units; ++unit) {
    const int64_t columns = smaller(a.unit, a.columns - unit * a.unit);
    decode_unit(block, weight, tile, unit * a.unit, columns, bytes);
    int64_t m = 0;
    const auto multiply = [&](auto count) {
      multiply_unit<Block::kCode, Block::kBits, activation, count.value>(weight, a, tile, first_row + m, unit, columns,
                                                                         bytes, y + m);
      m += count.value;
    };
    while (m + 4 <= rows) multiply(std::integral_constant<int, 4>());
    if (m + 2 <= rows) multiply(std::integral_constant<int, 2>());
    if (m < rows) multiply(std::integral_constant<int, 1>());
  }
  const int64_t n = tile * kTileRows;
  const int64_t valid = smaller(kTileRows, weight.rows - n);
  for (int64_t m = 0; m < rows; ++m) {
    const float row_scale = activation == Activation::kA8 ? a.scales[first_row + m] : 1;
    for (int64_t r = 0; r < valid; ++r) store_output(out, first_row + m, n + r, row_scale * y[m][r]);
  }
}

template <class Block, Activation activation>
void matmul_tiles(const PackedWeight& weight, const QuantizedRows& a, int64_t first, int64_t last, const Output& out) {
  for (int64_t tile = first; tile < last; ++tile) {
    for (int64_t row = 0; row < a.rows; row += kRowsPerPass) {
      matmul_pass<Block, activation>(weight, a, tile, row, smaller(kRowsPerPass, a.rows - row), out);
    }
  }
}

template <class Block>
MatMulTiles of_activation(Activation activation) {
  return activation == Activation::kA8 ? matmul_tiles<Block, Activation::kA8> : matmul_tiles<Block, Activation::kA16>;
}

// Which kind of codebook a weight has shows only in its tensors.
template <class PerTensor, class PerRow, Activation activation>
void matmul_codebook(const PackedWeight& weight, const QuantizedRows& a, int64_t first, int64_t last,
                     const Output& out) {
  if (weight.codebook_per_tensor) return matmul_tiles<PerTensor, activation>(weight, a, first, last, out);
  matmul_tiles<PerRow, activation>(weight, a, first, last, out);
}

template <class PerTensor, class PerRow>
MatMulTiles of_codebook(Activation activation) {
  return activation == Activation::kA8 ? matmul_codebook<PerTensor, PerRow, Activation::kA8>
                                       : matmul_codebook<PerTensor, PerRow, Activation::kA16>;
}

}  // namespace

MatMulTiles matmul_w2_16x32_avx2(Code code, Activation activation);
MatMulTiles matmul_w3_16x32_avx2(Code code, Activation activation);
MatMulTiles matmul_w4_16x32_avx2(Code code, Activation activation);
MatMulTiles matmul_w5_16x32_avx2(Code code, Activation activation);
MatMulTiles matmul_w6_16x32_avx2(Code code, Activation activation);
MatMulTiles matmul_w8_16x32_avx2(Code code, Activation activation);

}  // namespace qxc
