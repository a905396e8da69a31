// y[M, 16] = a8 or a16 [M, K] x codes [16, K], with AVX-512 VNNI: what the kernels of all bit widths share.
//
// A `Block` policy turns the lines of one block into eight vectors of unsigned bytes, one a step of 4 inputs:
// byte 4 * row + j of vector q belongs to input 4 * q + j, so that `vpdpbusd` adds up each row in an int32 lane.
// `kSlowToDecode` says that decoding takes about as long as the memory: see prefetch_block.
// Integer codes may stay shifted left by `bits` times their class; the accumulators of a class are shifted back.
#pragma once

#include <immintrin.h>

#include "avx512/processor.h"
#include "matmul_tiles.h"
#include "tile_loops.h"

namespace qxc {
namespace {

constexpr int64_t kPrefetchL1Bytes = 8192, kPrefetchL2Bytes = 16384;

// gcc folds a load into every use of its vector; one load into a register is faster (measured: by a tenth).
QXC_INLINE __m512i load_line(const uint8_t* line) {
  __m512i z = _mm512_loadu_si512(line);
  __asm__("" : "+v"(z));
  return z;
}

// Fetches what a block ahead of `lines` needs; it may lie beyond the matrix. Measured: where there is much work, each
// line is best asked for in L1, and earlier still in L2, because few misses can wait in L1: a tenth to a third faster.
// Else one request is enough, and some processors do better alone.
template <int bits, bool twice>
QXC_INLINE void prefetch_block(const uint8_t* lines, int64_t stream_prefetch_bytes) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(lines);
#pragma GCC unroll 8
  for (int line = 0; line < bits; ++line) {
    const uintptr_t here = at + line * kLineBytes;
    if constexpr (twice) {
      _mm_prefetch(reinterpret_cast<const char*>(here + kPrefetchL2Bytes), _MM_HINT_T1);
      _mm_prefetch(reinterpret_cast<const char*>(here + kPrefetchL1Bytes), _MM_HINT_T0);
    } else {
      _mm_prefetch(reinterpret_cast<const char*>(here + static_cast<uintptr_t>(stream_prefetch_bytes)), _MM_HINT_T0);
    }
  }
}

QXC_INLINE __m512i broadcast4(const int8_t* a) {
  int32_t four;
  std::memcpy(&four, a, sizeof four);
  return _mm512_set1_epi32(four);
}

// 2^(byte - 127)
QXC_INLINE __m512 powers_of_two(__m128i bytes) {
  __m512i bits = _mm512_slli_epi32(_mm512_cvtepu8_epi32(bytes), 23);
  // 0 is subnormal and 255 NaN: both have the first bit of the fraction set
  const __mmask16 is_special = _mm_cmple_epu8_mask(_mm_add_epi8(bytes, _mm_set1_epi8(1)), _mm_set1_epi8(1));
  bits = _mm512_mask_or_epi32(bits, is_special, bits, _mm512_set1_epi32(0x00400000));
  return _mm512_castsi512_ps(bits);
}

QXC_INLINE __m512 load_halves(const void* halves, int64_t at) {
  return _mm512_cvtph_ps(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(halves) + at)));
}

// What the numbers of a tile's 16 rows in one group are multiplied with. Those of QXC_FP are twice too large.
template <qxc_code code>
QXC_INLINE __m512 load_scales(const PackedWeight& weight, int64_t tile, int64_t tile_group) {
  const int64_t at = tile_group * kTileRows;
  __m512 scales;
  if (weight.scale == QXC_SCALE_FLOAT16) {
    scales = load_halves(weight.scales, at);
  } else {
    const __m128i bytes =
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint8_t*>(weight.scales) + at));
    if (weight.scale == QXC_SCALE_E8M0) {
      scales = powers_of_two(bytes);
    } else {
      const __m512 rows = _mm512_mul_ps(load_halves(weight.row_scales, tile * kTileRows), _mm512_set1_ps(0x1p-8f));
      scales = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)), rows);
    }
  }
  return code == QXC_FP ? _mm512_mul_ps(scales, _mm512_set1_ps(0.5f)) : scales;
}

// Number of classes of shifted codes.
template <qxc_code code, int bits>
constexpr int classes_of() {
  if (code == QXC_LUT || code == QXC_FP) return 1;
  return bits == 2 ? 4 : bits <= 4 ? 2 : 1;
}

// What all codes of a format have been raised by, to be unsigned.
template <qxc_code code, int bits>
constexpr int32_t offset_of() {
  return code == QXC_LUT || code == QXC_FP ? 128 : 1 << (bits - 1);
}

// One row's sums of products over a unit; `chains` of additions that overlap, or one for each class if that is more.
template <class Block, int chains>
struct Accumulators {
  static constexpr int kClasses = Block::kClasses;
  static constexpr int kPerClass = chains > kClasses ? chains / kClasses : 1;
  __m512i sums[kClasses * kPerClass];

  QXC_INLINE void clear(int32_t start) {
    sums[0] = _mm512_set1_epi32(start);
#pragma GCC unroll 4
    for (int i = 1; i < kClasses * kPerClass; ++i) sums[i] = _mm512_setzero_si512();
  }

  template <int step>
  QXC_INLINE void add(__m512i values, const int8_t* a) {
    __m512i& sum = sums[step % kClasses * kPerClass + step / kClasses % kPerClass];
    sum = _mm512_dpbusd_epi32(sum, values, broadcast4(a + 4 * step));
  }

  QXC_INLINE __m512i total() const {
    __m512i total = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int c = 0; c < kClasses; ++c) {
      __m512i sum = sums[c * kPerClass];
#pragma GCC unroll 4
      for (int i = 1; i < kPerClass; ++i) sum = _mm512_add_epi32(sum, sums[c * kPerClass + i]);
      if (c) sum = _mm512_srai_epi32(sum, static_cast<unsigned>(c * Block::kBits));
      total = c ? _mm512_add_epi32(total, sum) : sum;
    }
    return total;
  }
};

// The sums of products with codes less 2^(bits-1), made those with codes less their zero points.
template <qxc_code code, int bits>
QXC_INLINE __m512 subtract_zero_points(__m512 products, const PackedWeight& weight, int64_t tile_group, float sum) {
  if constexpr (code == QXC_UINT) {
    const __m128i bytes =
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(weight.zero_points + tile_group * kTileRows));
    const __m512i zeros = _mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes), _mm512_set1_epi32(1 << (bits - 1)));
    products = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(zeros), _mm512_set1_ps(sum), products);
  }
  return products;
}

// One row's sums in both halves of a16, or the one of a8.
template <class Block, Activation activation, int chains>
struct UnitSums {
  static constexpr bool kA16 = activation == Activation::kA16;
  static constexpr int32_t kOffset = offset_of<Block::kCode, Block::kBits>();
  Accumulators<Block, chains> high, low;

  QXC_INLINE void clear(const QuantizedRows& a, int64_t at) {
    high.clear(-kOffset * a.high_sums[at]);
    if constexpr (kA16) low.clear(-kOffset * a.low_sums[at]);
  }

  template <int first, int last>
  QXC_INLINE void add(const __m512i* values, const QuantizedRows& a, int64_t column) {
    if constexpr (first < last) {
      high.template add<first>(values[first], a.high + column);
      if constexpr (kA16) low.template add<first>(values[first], a.low + column);
      add<first + 1, last>(values, a, column);
    }
  }

  QXC_INLINE __m512 total(const PackedWeight& weight, const QuantizedRows& a, int64_t tile_group, int64_t at) const {
    __m512i total = high.total();
    if constexpr (kA16) total = _mm512_add_epi32(_mm512_slli_epi32(total, 8), low.total());
    __m512 products = _mm512_cvtepi32_ps(total);
    if constexpr (kA16) products = _mm512_mul_ps(products, _mm512_set1_ps(a.scales[at]));
    return subtract_zero_points<Block::kCode, Block::kBits>(products, weight, tile_group, a.sums[at]);
  }
};

QXC_INLINE void write(__m512 y, const PackedWeight& weight, int64_t tile, int64_t row, const Output& out) {
  const int64_t n = tile * kTileRows;
  const int64_t valid = smaller(kTileRows, weight.rows - n);
  const __mmask16 mask = static_cast<__mmask16>((1u << valid) - 1);
  const __m512 bias = out.bias_stride ? _mm512_maskz_loadu_ps(mask, out.bias + n) : _mm512_set1_ps(out.bias[0]);
  y = _mm512_add_ps(y, bias);
  const int64_t at = row * out.stride + n;
  if (out.is_half) {
    const __m256i halves = _mm512_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT);
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(out.y) + at, mask, halves);
  } else {
    _mm512_mask_storeu_ps(static_cast<float*>(out.y) + at, mask, y);
  }
}

// How many rows of A the accumulators of one pass hold in registers.
template <class Block, Activation activation>
constexpr int rows_in_registers() {
  return Block::kClasses * (activation == Activation::kA16 ? 2 : 1) <= 4 ? 4 : 2;
}

// A few rows of A: every line of weights is read once, used from registers.
template <class Block, Activation activation, int rows>
void matvec_tile(const PackedWeight& weight, const QuantizedRows& a, int64_t tile, int64_t first_row,
                 const Output& out) {
  constexpr qxc_code code = Block::kCode;
  constexpr bool kPrefetchTwice =
      Block::kSlowToDecode || (Block::kBits < 8 && (activation == Activation::kA16 || rows > 1));
  const Block block(weight, tile);
  const int64_t first_group = tile * weight.groups;
  const uint8_t* lines = weight.packed + tile * weight.blocks * Block::kBits * kLineBytes;
  const int64_t ahead = avx512::stream_prefetch_bytes();
  // sums that overlap, as many as is fastest (measured); in groups of 32, adding up more would take longer
  constexpr bool kFour = rows == 1 || (rows == 4 && activation == Activation::kA8 && !Block::kSlowToDecode);
  constexpr int kChains = code == QXC_FP ? 2 / rows : kFour ? 4 : 2;
  UnitSums<Block, activation, kChains> sums[rows];
  __m512 y[rows], partial[rows];
#pragma GCC unroll 4
  for (int m = 0; m < rows; ++m) y[m] = _mm512_setzero_ps();
  __m512i values[kSteps];
  const auto next_block = [&] {
    prefetch_block<Block::kBits, kPrefetchTwice>(lines, ahead);
    block.load(lines, values);
    lines += Block::kBits * kLineBytes;
  };
  // calls body(m, the place of row m's number for a unit)
  const auto each_row = [&](int64_t unit, const auto& body) {
#pragma GCC unroll 4
    for (int m = 0; m < rows; ++m) body(m, (first_row + m) * a.units + unit);
  };

  if (a.unit < kBlockColumns) {
    for (int64_t unit = 0; unit < a.units; ++unit) {
      const int64_t group = first_group + unit * a.unit / weight.group_size;
      const __m512 scales = load_scales<code>(weight, tile, group);
      if (unit % 2 == 0) next_block();
      each_row(unit, [&](int m, int64_t at) {
        const int64_t from = unit_offset(a, first_row + m, unit);
        sums[m].clear(a, at);
        if (unit % 2 == 0) {
          sums[m].template add<0, kSteps / 2>(values, a, from);
        } else {
          sums[m].template add<kSteps / 2, kSteps>(values, a, from - a.unit);
        }
        y[m] = _mm512_fmadd_ps(sums[m].total(weight, a, group, at), scales, y[m]);
      });
    }
  } else {
    const int64_t units_per_group = weight.groups == 1 ? a.units : weight.group_size / a.unit;
    int64_t unit = 0, columns_left = a.columns;
    for (int64_t group = first_group; group < first_group + weight.groups; ++group) {
#pragma GCC unroll 4
      for (int m = 0; m < rows; ++m) partial[m] = _mm512_setzero_ps();
      for (const int64_t end = smaller(unit + units_per_group, a.units); unit < end; ++unit) {
        each_row(unit, [&](int m, int64_t at) { sums[m].clear(a, at); });
        const int64_t columns = smaller(a.unit, columns_left);
        columns_left -= columns;
        const int64_t from = unit_offset(a, first_row, unit);
        for (int64_t column = from; column < from + columns; column += kBlockColumns) {
          next_block();
#pragma GCC unroll 4
          for (int m = 0; m < rows; ++m) sums[m].template add<0, kSteps>(values, a, column + m * a.unit);
        }
        each_row(unit, [&](int m, int64_t at) {
          partial[m] = _mm512_add_ps(partial[m], sums[m].total(weight, a, group, at));
        });
      }
      const __m512 scales = load_scales<code>(weight, tile, group);
#pragma GCC unroll 4
      for (int m = 0; m < rows; ++m) y[m] = _mm512_fmadd_ps(partial[m], scales, y[m]);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < rows; ++m) {
    if constexpr (activation == Activation::kA8) y[m] = _mm512_mul_ps(y[m], _mm512_set1_ps(a.scales[first_row + m]));
    write(y[m], weight, tile, first_row + m, out);
  }
}

// The bytes of one unit of one tile, not shifted: [columns / 4, 64].
template <class Block>
QXC_INLINE void decode_unit(const Block& block, const PackedWeight& weight, int64_t tile, int64_t first_column,
                            int64_t columns, uint8_t* bytes) {
  const int first_step = static_cast<int>(first_column % kBlockColumns) / 4;
  const uint8_t* lines =
      weight.packed + (tile * weight.blocks + first_column / kBlockColumns) * Block::kBits * kLineBytes;
  for (int64_t column = 0; column < columns; column += kBlockColumns) {
    __m512i values[kSteps];
    block.load(lines, values);
    const int steps = static_cast<int>(smaller(columns - column, kBlockColumns)) / 4;
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; ++step) {
      if (step < first_step || step >= first_step + steps) continue;
      const unsigned shift = static_cast<unsigned>(step % Block::kClasses * Block::kBits);
      _mm512_store_si512(bytes + (step - first_step) * kLineBytes, _mm512_srli_epi16(values[step], shift));
    }
    lines += Block::kBits * kLineBytes;
    bytes += steps * kLineBytes;
  }
}

// Adds the products of 64 bytes with 4 numbers of A, in every lane the same, to 16 sums. As intrinsics in
// this loop, gcc 12 copies sums between registers and spills some.
QXC_INLINE void add_products(__m512i& sums, __m512i values, const int8_t* a) {
  typedef int32_t Four __attribute__((may_alias, aligned(1)));
  __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sums) : "v"(values), "m"(*reinterpret_cast<const Four*>(a)));
}

// `rows` rows of A times `tiles` tiles of one unit.
template <qxc_code code, int bits, Activation activation, int rows, int tiles>
QXC_INLINE void multiply_unit(const PackedWeight& weight, const QuantizedRows& a, int64_t tile, int64_t row,
                              int64_t unit, int64_t columns, const uint8_t (*bytes)[kLargestUnit / 4 * kLineBytes],
                              float (*y)[tiles][kTileRows]) {
  constexpr bool kA16 = activation == Activation::kA16;
  __m512i high[rows][tiles], low[rows][tiles];
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m) {
    const int64_t at = (row + m) * a.units + unit;
#pragma GCC unroll 2
    for (int t = 0; t < tiles; ++t) {
      high[m][t] = _mm512_set1_epi32(-offset_of<code, bits>() * a.high_sums[at]);
      if constexpr (kA16) low[m][t] = _mm512_set1_epi32(-offset_of<code, bits>() * a.low_sums[at]);
    }
  }
  const int64_t from = unit_offset(a, row, unit);
  for (int64_t k = 0; k < columns; k += 4) {
    __m512i values[tiles];
#pragma GCC unroll 2
    for (int t = 0; t < tiles; ++t) values[t] = _mm512_load_si512(bytes[t] + k / 4 * kLineBytes);
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) {
      const int64_t at = from + m * a.unit + k;
#pragma GCC unroll 2
      for (int t = 0; t < tiles; ++t) {
        add_products(high[m][t], values[t], a.high + at);
        if constexpr (kA16) add_products(low[m][t], values[t], a.low + at);
      }
    }
  }
  const int64_t group = unit * a.unit / weight.group_size;
#pragma GCC unroll 2
  for (int t = 0; t < tiles; ++t) {
    const int64_t tile_group = (tile + t) * weight.groups + group;
    const __m512 scale = load_scales<code>(weight, tile + t, tile_group);
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) {
      const int64_t at = (row + m) * a.units + unit;
      __m512i total = high[m][t];
      if constexpr (kA16) total = _mm512_add_epi32(_mm512_slli_epi32(total, 8), low[m][t]);
      __m512 product = _mm512_cvtepi32_ps(total);
      if constexpr (kA16) product = _mm512_mul_ps(product, _mm512_set1_ps(a.scales[at]));
      product = subtract_zero_points<code, bits>(product, weight, tile_group, a.sums[at]);
      _mm512_store_ps(y[m][t], _mm512_fmadd_ps(product, scale, _mm512_load_ps(y[m][t])));
    }
  }
}

// Many rows of A: every unit of weights is decoded once, then multiplied with all rows of a pass.
template <class Block, Activation activation, int tiles>
void matmul_pass(const PackedWeight& weight, const QuantizedRows& a, int64_t tile, int64_t first_row, int64_t rows,
                 const Output& out) {
  constexpr int kRows = activation == Activation::kA8 ? 8 : 4;
  alignas(64) uint8_t bytes[tiles][kLargestUnit / 4 * kLineBytes];
  alignas(64) float y[kRowsPerPass][tiles][kTileRows];
  std::memset(y, 0, static_cast<size_t>(rows) * sizeof y[0]);
  for (int64_t unit = 0; unit < a.units; ++unit) {
    const int64_t columns = smaller(a.unit, a.columns - unit * a.unit);
    for (int t = 0; t < tiles; ++t) {
      decode_unit(Block(weight, tile + t), weight, tile + t, unit * a.unit, columns, bytes[t]);
    }
    each_rows<kRows>(rows, [&](auto count, int64_t m) QXC_LAMBDA {
      multiply_unit<Block::kCode, Block::kBits, activation, count.value, tiles>(weight, a, tile, first_row + m, unit,
                                                                                columns, bytes, y + m);
    });
  }
  for (int64_t m = 0; m < rows; ++m) {
    const __m512 scale = _mm512_set1_ps(row_scale<activation>(a, first_row + m));
    for (int t = 0; t < tiles; ++t) {
      const __m512 scaled = _mm512_mul_ps(_mm512_load_ps(y[m][t]), scale);
      write(scaled, weight, tile + t, first_row + m, out);
    }
  }
}

// The numbers of one step's input j, decoded: what zero points, or the offset of unsigned codes, leave of them.
template <class Block, int step>
QXC_INLINE __m512 decode_input(__m512i values, int j, __m512 zeros, __m512 scales) {
  constexpr unsigned kShift = step % Block::kClasses * Block::kBits;
  values = _mm512_srli_epi32(values, 8 * static_cast<unsigned>(j) + kShift);
  values = _mm512_and_si512(values, _mm512_set1_epi32(0xFF >> kShift));
  return _mm512_mul_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(values), zeros), scales);
}

template <class Block, int rows, int step>
QXC_INLINE void add_float_steps(const __m512i* values, const float* const* a, int64_t column, int64_t columns,
                                __m512 zeros, __m512 scales, __m512* y) {
  if constexpr (step < kSteps) {
    for (int j = 0; j < 4 && column + 4 * step + j < columns; ++j) {
      const __m512 weights = decode_input<Block, step>(values[step], j, zeros, scales);
#pragma GCC unroll 4
      for (int m = 0; m < rows; ++m) {
        y[m] = _mm512_fmadd_ps(weights, _mm512_set1_ps(a[m][column + 4 * step + j]), y[m]);
      }
    }
    add_float_steps<Block, rows, step + 1>(values, a, column, columns, zeros, scales, y);
  }
}

// `rows` rows of A, as they are, times the decoded numbers of one tile.
template <class Block, int rows>
void matmul_float_tile(const PackedWeight& weight, const float* a, const int64_t* row, int64_t tile,
                       const Output& out) {
  const Block block(weight, tile);
  const uint8_t* lines = weight.packed + tile * weight.blocks * Block::kBits * kLineBytes;
  const float* a_rows[rows];
  __m512 y[rows];
  for (int m = 0; m < rows; ++m) {
    a_rows[m] = a + row[m] * weight.columns;
    y[m] = _mm512_setzero_ps();
  }
  const int64_t part = smaller(weight.group_size, kBlockColumns);  // columns of a block that share scales
  for (int64_t first = 0; first < weight.columns; first += kBlockColumns) {
    __m512i values[kSteps];
    block.load(lines, values);
    lines += Block::kBits * kLineBytes;
    for (int64_t column = first; column < smaller(first + kBlockColumns, weight.columns); column += part) {
      const int64_t tile_group = tile * weight.groups + column / weight.group_size;
      __m512 zeros = _mm512_set1_ps(static_cast<float>(offset_of<Block::kCode, Block::kBits>()));
      if constexpr (Block::kCode == QXC_UINT) {
        const __m128i* bytes = reinterpret_cast<const __m128i*>(weight.zero_points + tile_group * kTileRows);
        zeros = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(bytes)));
      }
      const __m512 scales = load_scales<Block::kCode>(weight, tile, tile_group);
      const int64_t end = smaller(column + part, weight.columns);
      __m512 sums[rows];  // of a block by itself, which keeps rounding errors small
#pragma GCC unroll 4
      for (int m = 0; m < rows; ++m) sums[m] = _mm512_setzero_ps();
      if (column == first) {
        add_float_steps<Block, rows, 0>(values, a_rows, first, end, zeros, scales, sums);
      } else {
        add_float_steps<Block, rows, kSteps / 2>(values, a_rows, first, end, zeros, scales, sums);
      }
#pragma GCC unroll 4
      for (int m = 0; m < rows; ++m) y[m] = _mm512_add_ps(y[m], sums[m]);
    }
  }
  for (int m = 0; m < rows; ++m) write(y[m], weight, tile, row[m], out);
}

struct Avx512FloatProduct {
  using Rows = FloatRows;

  template <class Block>
  static void tiles(const PackedWeight& weight, const FloatRows& a, int64_t first, int64_t last, const Output& out) {
    for (int64_t tile = first; tile < last; ++tile) {
      int64_t row[4];
      int count = 0;
      for (int64_t m = 0; m < a.rows; ++m) {
        if (a.skip[m]) continue;
        row[count++] = m;
        if (count < 4) continue;
        matmul_float_tile<Block, 4>(weight, a.a, row, tile, out);
        count = 0;
      }
      for (int i = 0; i < count; ++i) matmul_float_tile<Block, 1>(weight, a.a, row + i, tile, out);
    }
  }
};

template <Activation activation>
struct Avx512RoundedProduct {
  using Rows = QuantizedRows;

  template <class Block>
  static void tiles(const PackedWeight& weight, const QuantizedRows& a, int64_t first, int64_t last,
                    const Output& out) {
    constexpr int kFew = rows_in_registers<Block, activation>();
    if (a.rows <= 16) {  // measured: with more rows, decoding a unit once, into L1, is faster
      for (int64_t tile = first; tile < last; ++tile) {
        each_rows<kFew>(a.rows, [&](auto count, int64_t row) QXC_LAMBDA {
          matvec_tile<Block, activation, count.value>(weight, a, tile, row, out);
        });
      }
      return;
    }
    // not by each_pass: two tiles at once share every number of A
    for (int64_t row = 0; row < a.rows; row += kRowsPerPass) {
      const int64_t rows = smaller(kRowsPerPass, a.rows - row);
      int64_t tile = first;
      for (; tile + 2 <= last; tile += 2) matmul_pass<Block, activation, 2>(weight, a, tile, row, rows, out);
      if (tile < last) matmul_pass<Block, activation, 1>(weight, a, tile, row, rows, out);
    }
  }
};

}  // namespace
}  // namespace qxc
