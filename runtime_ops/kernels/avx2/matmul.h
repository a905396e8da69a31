// y[M, 16] = a8, a16 or float [M, K] x codes [16, K], with AVX2: what the kernels of all bit widths share. Compiled
// with AVX-VNNI too, products are added up by `vpdpbusd`.
//
// A `Block` policy turns half the lines of one block (8 rows) into eight vectors of bytes, one a step of 4 inputs:
// byte 4 * row + j of vector q belongs to input 4 * q + j. Without AVX-VNNI they are multiplied by `vpmaddubsw` and
// `vpmaddwd`. The first adds pairs of products in 16 bits with saturation. Codes of up to 6 bits cannot reach it, even
// several steps added up; other bytes are signed, and multiplied as |w| and a * sign(w).
#pragma once

#include <immintrin.h>

#include "matmul_tiles.h"
#include "tile_loops.h"

namespace qxc {
namespace {

constexpr int64_t kPrefetchL2Bytes = 16384, kPrefetchL1Bytes = 8192;  // as measured for AVX-512
constexpr int kHalfBytes = kLineBytes / 2;
constexpr int kHalfRows = kTileRows / 2;

#ifdef __AVXVNNI__
constexpr bool kVnni = true;
#else
constexpr bool kVnni = false;
#endif

constexpr bool has_table(qxc_code code) { return code == QXC_LUT || code == QXC_FP; }

// Whether bytes are signed numbers instead of codes.
template <qxc_code code, int bits>
constexpr bool signed_bytes() {
  return !kVnni && (has_table(code) || bits == 8);
}

// What turns a signed number into the byte that a kernel multiplies.
constexpr int kRaise = kVnni ? 128 : 0;

// How many steps of products 16 bits can hold: each adds at most 2 * 127 * (2^bits - 1), or 2 * 127 * 128 if signed.
template <qxc_code code, int bits>
constexpr int steps_in_16_bits() {
  return signed_bytes<code, bits>() ? 1 : bits <= 4 ? 8 : bits == 5 ? 4 : 2;
}

// What the bytes stand above the numbers, besides a zero point.
template <qxc_code code, int bits>
constexpr int32_t offset_of() {
  return signed_bytes<code, bits>() ? 0 : has_table(code) ? 128 : 1 << (bits - 1);
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

QXC_INLINE void prefetch_block(const uint8_t* lines, int bits) {
  for (int line = 0; line < bits; ++line) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(lines + line * kLineBytes);  // may lie beyond the matrix
    _mm_prefetch(reinterpret_cast<const char*>(at + kPrefetchL2Bytes), _MM_HINT_T1);
    _mm_prefetch(reinterpret_cast<const char*>(at + kPrefetchL1Bytes), _MM_HINT_T0);
  }
}

template <qxc_code code, int bits>
QXC_INLINE __m256i products(__m256i values, __m256i a) {
  if constexpr (signed_bytes<code, bits>()) {
    return _mm256_maddubs_epi16(_mm256_abs_epi8(values), _mm256_sign_epi8(a, values));
  }
  return _mm256_maddubs_epi16(values, a);
}

// totals[m] += the products of `steps` steps of half a tile with `rows` rows of A.
template <qxc_code code, int bits, int steps, int rows>
QXC_INLINE void add_steps(const __m256i* values, const int8_t* a, int64_t stride, __m256i* totals) {
#ifdef __AVXVNNI__
  __m256i odd[rows];  // two sums, so that additions overlap
#pragma GCC unroll 4
  for (int m = 0; m < rows; ++m) odd[m] = _mm256_setzero_si256();
#pragma GCC unroll 8
  for (int step = 0; step < steps; ++step) {
#pragma GCC unroll 4
    for (int m = 0; m < rows; ++m) {
      __m256i& sum = step % 2 ? odd[m] : totals[m];
      sum = _mm256_dpbusd_avx_epi32(sum, values[step], broadcast4(a + m * stride + 4 * step));
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < rows; ++m) totals[m] = _mm256_add_epi32(totals[m], odd[m]);
#else
  constexpr int kChain = steps_in_16_bits<code, bits>() < steps ? steps_in_16_bits<code, bits>() : steps;
#pragma GCC unroll 8
  for (int first = 0; first < steps; first += kChain) {
    __m256i sums[rows];
#pragma GCC unroll 8
    for (int i = 0; i < kChain; ++i) {
#pragma GCC unroll 4
      for (int m = 0; m < rows; ++m) {
        const __m256i four = broadcast4(a + m * stride + 4 * (first + i));
        const __m256i product = products<code, bits>(values[first + i], four);
        sums[m] = i == 0 ? product : _mm256_add_epi16(sums[m], product);
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < rows; ++m) {
      totals[m] = _mm256_add_epi32(totals[m], _mm256_madd_epi16(sums[m], _mm256_set1_epi16(1)));
    }
  }
#endif
}

// 2^(byte - 127)
QXC_INLINE __m256 powers_of_two(__m256i bytes) {
  const __m256i zero = _mm256_cmpeq_epi32(bytes, _mm256_setzero_si256());
  const __m256i nan = _mm256_cmpeq_epi32(bytes, _mm256_set1_epi32(255));
  // 0 is subnormal and 255 NaN: both have the first bit of the fraction set
  const __m256i fraction = _mm256_and_si256(_mm256_or_si256(zero, nan), _mm256_set1_epi32(0x00400000));
  return _mm256_castsi256_ps(_mm256_or_si256(_mm256_slli_epi32(bytes, 23), fraction));
}

QXC_INLINE __m256 load_halves(const void* halves, int64_t at) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(halves) + at)));
}

// What the numbers of 8 rows of a tile in one group are multiplied with. Those of QXC_FP are twice too large. `at` is
// the place of the rows' scales.
template <qxc_code code>
QXC_INLINE __m256 load_scales(const PackedWeight& weight, int64_t tile, int64_t at) {
  __m256 scales;
  if (weight.scale == QXC_SCALE_FLOAT16) {
    scales = load_halves(weight.scales, at);
  } else {
    const __m256i bytes = _mm256_cvtepu8_epi32(
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(static_cast<const uint8_t*>(weight.scales) + at)));
    if (weight.scale == QXC_SCALE_E8M0) {
      scales = powers_of_two(bytes);
    } else {
      const __m256 rows = load_halves(weight.row_scales, tile * kTileRows + at % kTileRows);
      scales = _mm256_mul_ps(_mm256_cvtepi32_ps(bytes), _mm256_mul_ps(rows, _mm256_set1_ps(0x1p-8f)));
    }
  }
  return code == QXC_FP ? _mm256_mul_ps(scales, _mm256_set1_ps(0.5f)) : scales;
}

QXC_INLINE __m256 load_zero_points(const PackedWeight& weight, int64_t at) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(weight.zero_points + at));
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
}

// One unit's sums of products as numbers, before the scales of the weights. `at` is the place of the half's scales.
template <qxc_code code, int bits, Activation activation>
QXC_INLINE __m256 unit_product(const PackedWeight& weight, int64_t at, const QuantizedRows& a, int64_t of_unit,
                               __m256i high, __m256i low) {
  int32_t sum = a.high_sums[of_unit];
  if constexpr (activation == Activation::kA16) {
    sum = 256 * sum + a.low_sums[of_unit];
    high = _mm256_add_epi32(_mm256_slli_epi32(high, 8), low);
  }
  const __m256i total = _mm256_sub_epi32(high, _mm256_set1_epi32(offset_of<code, bits>() * sum));
  __m256 product = _mm256_cvtepi32_ps(total);
  if constexpr (activation == Activation::kA16) product = _mm256_mul_ps(product, _mm256_set1_ps(a.scales[of_unit]));
  if constexpr (code == QXC_UINT) {
    const __m256 zeros = _mm256_sub_ps(load_zero_points(weight, at), _mm256_set1_ps(1 << (bits - 1)));
    product = _mm256_fnmadd_ps(zeros, _mm256_set1_ps(a.sums[of_unit]), product);
  }
  return product;
}

QXC_INLINE void write(const float* y, const PackedWeight& weight, int64_t tile, int64_t row, float row_scale,
                      const Output& out) {
  const int64_t n = tile * kTileRows;
  const int64_t valid = smaller(kTileRows, weight.rows - n);
  for (int64_t r = 0; r < valid; ++r) store_output(out, row, n + r, row_scale * y[r]);
}

// One row of A: every line of weights is read once, used from registers.
template <class Block, Activation activation>
void matvec_tile(const PackedWeight& weight, const QuantizedRows& a, int64_t tile, const Output& out) {
  constexpr qxc_code code = Block::kCode;
  constexpr int bits = Block::kBits;
  constexpr bool kA16 = activation == Activation::kA16;
  const Block block(weight, tile);
  const uint8_t* tile_lines = weight.packed + tile * weight.blocks * bits * kLineBytes;
  __m256 y[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int64_t unit = 0; unit < a.units; ++unit) {
    __m256i high[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    __m256i low[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    const int64_t first = unit * a.unit, last = smaller(first + a.unit, a.columns);
    for (int64_t column = first; column < last; column += kBlockColumns) {
      const uint8_t* lines = tile_lines + column / kBlockColumns * bits * kLineBytes;
      prefetch_block(lines, bits);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        __m256i values[kSteps];
        block.load(lines + half * kHalfBytes, half, values);
        if (last - column < kBlockColumns) {  // a unit of 16 columns is the block's first or second half
          const __m256i* of_unit = values + column % kBlockColumns / 4;
          add_steps<code, bits, kSteps / 2, 1>(of_unit, a.high + column, 0, high + half);
          if constexpr (kA16) add_steps<code, bits, kSteps / 2, 1>(of_unit, a.low + column, 0, low + half);
        } else {
          add_steps<code, bits, kSteps, 1>(values, a.high + column, 0, high + half);
          if constexpr (kA16) add_steps<code, bits, kSteps, 1>(values, a.low + column, 0, low + half);
        }
      }
    }
    const int64_t at = (tile * weight.groups + first / weight.group_size) * kTileRows;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const int64_t of_half = at + half * kHalfRows;
      const __m256 product = unit_product<code, bits, activation>(weight, of_half, a, unit, high[half], low[half]);
      y[half] = _mm256_fmadd_ps(product, load_scales<code>(weight, tile, of_half), y[half]);
    }
  }
  alignas(32) float stored[kTileRows];
  _mm256_store_ps(stored, y[0]);
  _mm256_store_ps(stored + kHalfRows, y[1]);
  write(stored, weight, tile, 0, kA16 ? 1 : a.scales[0], out);
}

// The bytes of one unit of one tile: [2 halves, columns / 4, 32].
template <class Block>
QXC_INLINE void decode_unit(const Block& block, const PackedWeight& weight, int64_t tile, int64_t first_column,
                            int64_t columns, __m256i (*bytes)[kLargestUnit / 4]) {
  const int first_step = static_cast<int>(first_column % kBlockColumns) / 4;
  const uint8_t* lines =
      weight.packed + (tile * weight.blocks + first_column / kBlockColumns) * Block::kBits * kLineBytes;
  for (int64_t column = 0; column < columns; column += kBlockColumns) {
    const int steps = static_cast<int>(smaller(columns - column, kBlockColumns)) / 4;
    prefetch_block(lines, Block::kBits);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m256i values[kSteps];
      block.load(lines + half * kHalfBytes, half, values);
#pragma GCC unroll 8
      for (int step = 0; step < kSteps; ++step) {
        if (step < first_step || step >= first_step + steps) continue;
        bytes[half][column / 4 + step - first_step] = values[step];
      }
    }
    lines += Block::kBits * kLineBytes;
  }
}

// `rows` rows of A times half a tile of one unit.
template <qxc_code code, int bits, int rows>
QXC_INLINE void add_unit(const __m256i* bytes, const int8_t* a, int64_t stride, int64_t columns, __m256i* totals) {
  int64_t k = 0;
  for (; k + kBlockColumns <= columns; k += kBlockColumns) {
    add_steps<code, bits, kSteps, rows>(bytes + k / 4, a + k, stride, totals);
  }
  if (k < columns) add_steps<code, bits, kSteps / 2, rows>(bytes + k / 4, a + k, stride, totals);
}

template <qxc_code code, int bits, Activation activation, int rows>
QXC_INLINE void multiply_unit(const PackedWeight& weight, const QuantizedRows& a, int64_t tile, int64_t row,
                              int64_t unit, int64_t columns, const __m256i (*bytes)[kLargestUnit / 4],
                              float (*y)[kTileRows]) {
  const int64_t first_column = unit * a.unit;
  const int64_t from = unit_offset(a, row, unit);
  const int64_t at = (tile * weight.groups + first_column / weight.group_size) * kTileRows;
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    __m256i high[rows], low[rows];
#pragma GCC unroll 4
    for (int m = 0; m < rows; ++m) high[m] = low[m] = _mm256_setzero_si256();
    add_unit<code, bits, rows>(bytes[half], a.high + from, a.unit, columns, high);
    if constexpr (activation == Activation::kA16) {
      add_unit<code, bits, rows>(bytes[half], a.low + from, a.unit, columns, low);
    }
    const int64_t of_half = at + half * kHalfRows;
    const __m256 scales = load_scales<code>(weight, tile, of_half);
#pragma GCC unroll 4
    for (int m = 0; m < rows; ++m) {
      const int64_t of_unit = (row + m) * a.units + unit;
      const __m256 product = unit_product<code, bits, activation>(weight, of_half, a, of_unit, high[m], low[m]);
      float* to = y[m] + half * kHalfRows;
      _mm256_store_ps(to, _mm256_fmadd_ps(product, scales, _mm256_load_ps(to)));
    }
  }
}

// Many rows of A: every unit of weights is decoded once, then multiplied with all rows of a pass.
template <class Block, Activation activation>
void matmul_pass(const PackedWeight& weight, const QuantizedRows& a, int64_t tile, int64_t first_row, int64_t rows,
                 const Output& out) {
  const Block block(weight, tile);
  __m256i bytes[2][kLargestUnit / 4];
  alignas(32) float y[kRowsPerPass][kTileRows];
  std::memset(y, 0, static_cast<size_t>(rows) * sizeof y[0]);
  for (int64_t unit = 0; unit < a.units; ++unit) {
    const int64_t columns = smaller(a.unit, a.columns - unit * a.unit);
    decode_unit(block, weight, tile, unit * a.unit, columns, bytes);
    each_rows<4>(rows, [&](auto count, int64_t m) QXC_LAMBDA {
      multiply_unit<Block::kCode, Block::kBits, activation, count.value>(weight, a, tile, first_row + m, unit, columns,
                                                                         bytes, y + m);
    });
  }
  for (int64_t m = 0; m < rows; ++m) {
    write(y[m], weight, tile, first_row + m, row_scale<activation>(a, first_row + m), out);
  }
}

template <Activation activation>
struct Avx2RoundedProduct {
  using Rows = QuantizedRows;

  template <class Block>
  static void tiles(const PackedWeight& weight, const QuantizedRows& a, int64_t first, int64_t last,
                    const Output& out) {
    each_pass(first, last, a.rows, [&](int64_t tile, int64_t row, int64_t rows) QXC_LAMBDA {
      if (a.rows == 1) return matvec_tile<Block, activation>(weight, a, tile, out);
      matmul_pass<Block, activation>(weight, a, tile, row, rows, out);
    });
  }
};

// The numbers of one step's input j, decoded.
template <qxc_code code, int bits>
QXC_INLINE __m256 decode_input(__m256i values, int j, __m256 zeros, __m256 scales) {
  const __m256i at_top = _mm256_slli_epi32(values, 24 - 8 * j);
  const __m256i number = signed_bytes<code, bits>() ? _mm256_srai_epi32(at_top, 24) : _mm256_srli_epi32(at_top, 24);
  return _mm256_mul_ps(_mm256_sub_ps(_mm256_cvtepi32_ps(number), zeros), scales);
}

// Row `row` of A, as it is, times the decoded numbers of one tile.
template <class Block>
void matvec_float_tile(const PackedWeight& weight, const float* a, int64_t row, int64_t tile, const Output& out) {
  constexpr qxc_code code = Block::kCode;
  constexpr int bits = Block::kBits;
  const Block block(weight, tile);
  const uint8_t* lines = weight.packed + tile * weight.blocks * bits * kLineBytes;
  a += row * weight.columns;
  __m256 y[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int64_t first = 0; first < weight.columns; first += kBlockColumns) {
    for (int half = 0; half < 2; ++half) {
      __m256i values[kSteps];
      block.load(lines + half * kHalfBytes, half, values);
      __m256 zeros = _mm256_set1_ps(static_cast<float>(offset_of<code, bits>())), scales = zeros;
      __m256 sum = _mm256_setzero_ps();  // of a block by itself, which keeps rounding errors small
      int64_t group = -1;
      const int64_t last = smaller(first + kBlockColumns, weight.columns);
      for (int64_t k = first; k < last; ++k) {
        if (k / weight.group_size != group) {
          group = k / weight.group_size;
          const int64_t at = (tile * weight.groups + group) * kTileRows + half * kHalfRows;
          scales = load_scales<code>(weight, tile, at);
          if constexpr (code == QXC_UINT) {
            // signed bytes are codes less 128
            zeros = _mm256_sub_ps(load_zero_points(weight, at), _mm256_set1_ps(signed_bytes<code, bits>() ? 128 : 0));
          }
        }
        const int within = static_cast<int>(k - first);
        const __m256 weights = decode_input<code, bits>(values[within / 4], within % 4, zeros, scales);
        sum = _mm256_fmadd_ps(weights, _mm256_set1_ps(a[k]), sum);
      }
      y[half] = _mm256_add_ps(y[half], sum);
    }
    lines += bits * kLineBytes;
  }
  alignas(32) float stored[kTileRows];
  _mm256_store_ps(stored, y[0]);
  _mm256_store_ps(stored + kHalfRows, y[1]);
  write(stored, weight, tile, row, 1, out);
}

struct Avx2FloatProduct {
  using Rows = FloatRows;

  template <class Block>
  static void tiles(const PackedWeight& weight, const FloatRows& a, int64_t first, int64_t last, const Output& out) {
    for (int64_t tile = first; tile < last; ++tile) {
      for (int64_t m = 0; m < a.rows; ++m) {
        if (!a.skip[m]) matvec_float_tile<Block>(weight, a.a, m, tile, out);
      }
    }
  }
};

}  // namespace
}  // namespace qxc
