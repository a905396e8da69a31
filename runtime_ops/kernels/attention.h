// Attention, which every instruction set compiles for itself: softmax as the keys come, a block of them at a time
// (Dao et al., FlashAttention, 2022), for all queries whose heads share the keys. Internal linkage: see scalar.h.
#pragma once

#include <cfloat>
#include <cmath>

#include "attention_layout.h"
#include "cache_rows.h"
#include "elements.h"
#include "hadamard.h"
#include "kernels.h"
#include "lanes.h"
#include "scalar.h"

namespace qxc {
namespace {

constexpr int kTileHeight = 6;                     // rows of a product whose sums stay in registers
constexpr int kTileVectors = kLanes == 8 ? 2 : 4;  // and vectors of columns: AVX2 has half as many registers
constexpr int64_t kFewestTransposed = 8;           // rows for which it pays to transpose keys
constexpr int kRowsAhead = 24;                     // of a cache in integers, asked of memory before they are read
constexpr float kMasked = -1e30f;                  // a mask that leaves nothing of a score, but is finite

inline int64_t whole_vectors(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// Rotary embedding of a head's D numbers, by halves of the first R, with the cosines and sines of its token.
template <class Vector>
void embed(const qxc_attention& a, const void* x, int64_t batch, int64_t token, bool to_half, void* y) {
  constexpr int64_t kChunk = 64;
  const bool is_half = a.element == QXC_FLOAT16;
  const int64_t R = a.rotary_size, at = ((a.rotary_batch == 1 ? 0 : batch) * a.length + token) * R;
  float in[2][kChunk], cosine[2][kChunk], sine[2][kChunk], out[2][kChunk];
  for (int64_t i = 0; i < R / 2; i += kChunk) {
    const int64_t count = smaller(kChunk, R / 2 - i);
    for (int half = 0; half < 2; ++half) {
      const int64_t from = i + half * (R / 2);
      read<Vector>(element(x, is_half, from), is_half, count, in[half]);
      read<Vector>(element(a.cos, is_half, at + from), is_half, count, cosine[half]);
      read<Vector>(element(a.sin, is_half, at + from), is_half, count, sine[half]);
    }
    for (int64_t k = 0; k < count; ++k) {
      out[0][k] = in[0][k] * cosine[0][k] - in[1][k] * sine[0][k];
      out[1][k] = in[1][k] * cosine[1][k] + in[0][k] * sine[1][k];
    }
    for (int half = 0; half < 2; ++half) write(out[half], count, to_half, element(y, to_half, i + half * (R / 2)));
  }
  for (int64_t i = R; i < a.head_size; i += kChunk) {
    const int64_t count = smaller(kChunk, a.head_size - i);
    read<Vector>(element(x, is_half, i), is_half, count, in[0]);
    write(in[0], count, to_half, element(y, to_half, i));
  }
}

// A new row as the cache keeps it; in integers by way of the scratch, which has room for it and for its codes.
template <class Vector>
void write_row(const AttentionLayout& layout, const void* x, int64_t batch, int64_t at, bool is_rotated, float* scratch,
               void* y) {
  const qxc_attention& a = *layout.given;
  const bool is_half = a.element == QXC_FLOAT16, integers = is_in_integers(a.has_cache);
  const int64_t D = a.head_size;
  if (is_rotated) {
    embed<Vector>(a, x, batch, at, is_half && !integers, integers ? scratch : y);
  } else if (integers) {
    read<Vector>(x, is_half, D, scratch);
  } else {
    std::memcpy(y, x, static_cast<size_t>(layout.cache_row));
  }
  if (!integers) return;
  if (layout.block_size > 1) rotate(scratch, D, layout.block_size, scratch);
  encode_cache_row(scratch, D, a.has_cache, static_cast<uint8_t*>(y));
}

// Tokens [first, last) of one head of `past`, with the new ones in their place, to `present`.
template <class Vector>
void append_head(const AttentionLayout& layout, int64_t batch, int64_t head, int64_t first, int64_t last,
                 const void* past, const void* input, bool is_rotated, float* scratch, void* present) {
  const qxc_attention& a = *layout.given;
  const bool is_half = a.element == QXC_FLOAT16;
  const int64_t D = a.head_size, P = a.past_tokens, rows = a.has_cache ? (P > a.tokens ? P : a.tokens) : a.tokens;
  const char* from = static_cast<const char*>(past) + (batch * a.kv_heads + head) * P * layout.cache_row;
  char* to = static_cast<char*>(present) + (batch * a.kv_heads + head) * rows * layout.cache_row;
  const int64_t first_new = a.tokens - a.length;
  const auto keep = [&](int64_t begin, int64_t end) {
    if (begin >= end || past == present) return;
    std::memcpy(to + begin * layout.cache_row, from + begin * layout.cache_row,
                static_cast<size_t>((end - begin) * layout.cache_row));
  };
  keep(first, smaller(last, first_new));
  for (int64_t token = first > first_new ? first : first_new; token < smaller(last, a.tokens); ++token) {
    const int64_t at = token - first_new;
    const void* x = element(input, is_half, ((batch * a.length + at) * a.kv_heads + head) * D);
    write_row<Vector>(layout, x, batch, at, is_rotated, scratch, to + token * layout.cache_row);
  }
  keep(first > a.tokens ? first : a.tokens, last);
}

// See `Kernels`.
template <class Vector>
void append(const AttentionLayout& layout, int64_t task, float* scratch) {
  const qxc_attention& a = *layout.given;
  const int64_t blocks = (layout.appended + kTokensPerAppend - 1) / kTokensPerAppend;
  const int64_t batch = task / blocks / a.kv_heads, head = task / blocks % a.kv_heads;
  const int64_t first = layout.first_appended + task % blocks * kTokensPerAppend;
  const int64_t last = smaller(first + kTokensPerAppend, layout.first_appended + layout.appended);
  const auto append_one = [&](const void* past, const void* input, bool is_rotated, void* present) {
    append_head<Vector>(layout, batch, head, first, last, past, input, is_rotated, scratch, present);
  };
  append_one(a.past_key, a.key, a.rotary_size != 0, a.has_cache ? a.present_key : layout.rotated_keys);
  if (a.has_cache) append_one(a.past_value, a.value, false, a.present_value);
}

// A matrix of floats whose rows are whole vectors.
struct Matrix {
  const float* at;
  int64_t stride;
};

// C [rows, vectors] = A [rows, depth] B [depth, vectors], added to what is there or not.
template <int rows, int vectors>
inline void multiply_tile(Matrix a, Matrix b, int64_t depth, bool adds, float* c, int64_t c_stride) {
  Floats sums[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sums[r][v] = adds ? load(c + r * c_stride + v * kLanes) : Floats{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Floats row[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) row[v] = load(b.at + k * b.stride + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Floats factor = splat(a.at[r * a.stride + k]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[r][v] = multiply_add(factor, row[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) store(c + r * c_stride + v * kLanes, sums[r][v]);
  }
}

template <int vectors>
void multiply_columns(Matrix a, int64_t rows, Matrix b, int64_t depth, bool adds, float* c, int64_t c_stride) {
  for (int64_t r = 0; r < rows; r += kTileHeight, a.at += kTileHeight * a.stride, c += kTileHeight * c_stride) {
    switch (smaller(rows - r, kTileHeight)) {
      case 1: multiply_tile<1, vectors>(a, b, depth, adds, c, c_stride); break;
      case 2: multiply_tile<2, vectors>(a, b, depth, adds, c, c_stride); break;
      case 3: multiply_tile<3, vectors>(a, b, depth, adds, c, c_stride); break;
      case 4: multiply_tile<4, vectors>(a, b, depth, adds, c, c_stride); break;
      case 5: multiply_tile<5, vectors>(a, b, depth, adds, c, c_stride); break;
      default: multiply_tile<kTileHeight, vectors>(a, b, depth, adds, c, c_stride);
    }
  }
}

// The same, of any whole number of vectors.
inline void multiply(Matrix a, int64_t rows, Matrix b, int64_t depth, int64_t columns, bool adds, float* c,
                     int64_t c_stride) {
  int64_t column = 0;
  for (; column + kTileVectors * kLanes <= columns; column += kTileVectors * kLanes) {
    multiply_columns<kTileVectors>(a, rows, {b.at + column, b.stride}, depth, adds, c + column, c_stride);
  }
  for (; column < columns; column += kLanes) {
    multiply_columns<1>(a, rows, {b.at + column, b.stride}, depth, adds, c + column, c_stride);
  }
}

// Scores of few rows: keys are read as they lie. Beyond `count`, those of the last key stand again.
inline void score_as_they_lie(Matrix q, int64_t rows, Matrix keys, int64_t count, int64_t width, float* scores) {
  for (int64_t first = 0; first < count; first += kLanes) {
    for (int64_t r = 0; r < rows; ++r) {
      Floats products[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const float* key = keys.at + smaller(first + i, count - 1) * keys.stride;
        Floats sum{};
        for (int64_t d = 0; d < width; d += kLanes)
          sum = multiply_add(load(q.at + r * q.stride + d), load(key + d), sum);
        products[i] = sum;
      }
      store(scores + r * kKeysPerBlock + first, totals(products));
    }
  }
}

// Keys [count, width] to columns [width, kKeysPerBlock]; beyond `count`, as above.
inline void transpose_keys(Matrix keys, int64_t count, int64_t width, float* columns) {
  for (int64_t first = 0; first < count; first += kLanes) {
    for (int64_t d = 0; d < width; d += kLanes) {
      Floats square[kLanes];
      for (int i = 0; i < kLanes; ++i) square[i] = load(keys.at + smaller(first + i, count - 1) * keys.stride + d);
      transpose(square);
      for (int i = 0; i < kLanes; ++i) store(columns + (d + i) * kKeysPerBlock + first, square[i]);
    }
  }
}

// One task: its place, and its memory.
struct AttentionTask {
  explicit AttentionTask(const AttentionLayout& layout) : layout(layout) {}
  const AttentionLayout& layout;
  int64_t batch, head, first_query, rows, first_key, last_key;
  int64_t width, mask_rows;  // D in whole vectors; rows of the mask that differ
  bool is_half;
  float *values, *largest, *sums;                    // results: [rows, width], [rows], [rows]
  float *queries, *scores, *mask, *block, *columns;  // a worker's scratch, for which attention.cpp has room
};

inline AttentionTask task_at(const AttentionLayout& layout, int64_t task) {
  const qxc_attention& a = *layout.given;
  const int64_t piece = task % layout.pieces, place = task / layout.pieces;
  // those that see the most keys of a causal mask, the last, come first: threads then end together
  const int64_t query_block = layout.query_blocks - 1 - place % layout.query_blocks, head = place / layout.query_blocks;
  AttentionTask t(layout);
  t.batch = head / a.kv_heads;
  t.head = head % a.kv_heads;
  t.first_query = query_block * layout.queries;
  const int64_t queries = smaller(layout.queries, a.length - t.first_query);
  t.rows = queries * layout.group;
  t.first_key = piece * layout.keys;
  t.last_key = smaller(t.first_key + layout.keys, a.tokens);
  t.width = whole_vectors(a.head_size);
  t.mask_rows = layout.mask_strides[1] ? t.rows : layout.mask_strides[2] ? queries : 1;
  t.is_half = a.element == QXC_FLOAT16;
  return t;
}

inline void set_results(AttentionTask& t, float* memory) {
  t.values = memory;
  t.largest = t.values + t.rows * t.width;
  t.sums = t.largest + t.rows;
}

// The task's queries, embedded and scaled: a row for each token and head of the group, heads of a token together.
template <class Vector>
void read_queries(const AttentionTask& t) {
  const qxc_attention& a = *t.layout.given;
  const int64_t D = a.head_size;
  for (int64_t r = 0; r < t.rows; ++r) {
    const int64_t token = t.first_query + r / t.layout.group, head = t.head * t.layout.group + r % t.layout.group;
    const void* x = element(a.query, t.is_half, ((t.batch * a.length + token) * a.heads + head) * D);
    float* row = t.queries + r * t.width;
    if (a.rotary_size) {
      embed<Vector>(a, x, t.batch, token, false, row);
    } else {
      read<Vector>(x, t.is_half, D, row);
    }
    for (int64_t d = 0; d < D; ++d) row[d] *= a.scale;
    if (t.layout.block_size > 1) rotate(row, D, t.layout.block_size, row);
    for (int64_t d = D; d < t.width; ++d) row[d] = 0;
  }
}

// What a block's mask leaves of its keys, at most.
enum Visible { kNothing, kNextToNothing, kVisible };

// The mask of `count` keys, minus infinity beyond.
template <class Vector>
Visible read_mask(const AttentionTask& t, int64_t first_key, int64_t count) {
  const qxc_attention& a = *t.layout.given;
  const int64_t* strides = t.layout.mask_strides;
  Floats visible = splat(kNothing);
  for (int64_t r = 0; r < t.mask_rows; ++r) {
    const int64_t token = strides[1] ? r / t.layout.group : r, head = t.head * t.layout.group + r % t.layout.group;
    const int64_t at = t.batch * strides[0] + head * strides[1] + (t.first_query + token) * strides[2];
    float* row = t.mask + r * kKeysPerBlock;
    if (strides[3]) {
      read<Vector>(element(a.mask, t.is_half, at + first_key), t.is_half, count, row);
    } else {
      read<Vector>(element(a.mask, t.is_half, at), t.is_half, 1, row);
      for (int64_t k = 1; k < count; ++k) row[k] = row[0];
    }
    for (int64_t k = count; k < kKeysPerBlock; ++k) row[k] = -INFINITY;
    for (int64_t k = 0; k < count; k += kLanes) {
      const Floats mask = load(row + k);
      const Floats masked = mask < -FLT_MAX ? splat(kNothing) : splat(kNextToNothing);
      visible = larger(visible, mask <= kMasked ? masked : splat(kVisible));
    }
  }
  return static_cast<Visible>(largest(visible));
}

// Rows of one block of keys or values, as floats in whole vectors.
template <class Vector>
Matrix read_block(const AttentionTask& t, const HeadRows& rows, int64_t first_key, int64_t count) {
  const int64_t D = t.layout.given->head_size;
  const char* at = rows.at + t.batch * rows.batch + t.head * rows.head + first_key * rows.token;
  const bool integers = is_in_integers(rows.cache);
  if (!integers && !t.is_half && D == t.width) {
    return {reinterpret_cast<const float*>(at), rows.token / static_cast<int64_t>(sizeof(float))};
  }
  for (int64_t k = 0; k < count; ++k) {
    float* row = t.block + k * t.width;
    if (integers) {
      __builtin_prefetch(at + (k + kRowsAhead) * rows.token);
      decode_cache_row(reinterpret_cast<const uint8_t*>(at + k * rows.token), D, rows.cache, row);
    } else {
      read<Vector>(at + k * rows.token, t.is_half, D, row);
    }
    for (int64_t d = D; d < t.width; ++d) row[d] = 0;
  }
  return {t.block, t.width};
}

// Scores of one row become exponentials, and what was added up before is scaled down to them.
inline void update_row(const AttentionTask& t, int64_t row, int64_t count) {
  const float softcap = t.layout.given->softcap;
  float* scores = t.scores + row * kKeysPerBlock;
  const int64_t mask_row = t.mask_rows == t.rows ? row : t.mask_rows == 1 ? 0 : row / t.layout.group;
  const float* mask = t.mask + mask_row * kKeysPerBlock;
  Floats most = splat(t.largest[row]);
  for (int64_t k = 0; k < count; k += kLanes) {
    Floats score = load(scores + k);
    if (softcap != 0) score = softcap * tanh_of(score / softcap);
    score += load(mask + k);
    store(scores + k, score);
    most = larger(score, most);
  }
  const float previous = t.largest[row], now = largest(most);
  if (now > previous) {  // NaN changes nothing here, but the sum below
    const float factor = exp_of_negative(splat(previous - now))[0];
    float* values = t.values + row * t.width;
    for (int64_t d = 0; d < t.width; d += kLanes) store(values + d, load(values + d) * factor);
    t.sums[row] *= factor;
    t.largest[row] = now;
  }
  Floats sum{};
  for (int64_t k = 0; k < count; k += kLanes) {
    const Floats exponential = exp_of_negative(load(scores + k) - now);
    store(scores + k, exponential);
    sum += exponential;
  }
  t.sums[row] += total(sum);
}

// Attends to one block of keys, whose mask has been read.
template <class Vector>
void attend_block(const AttentionTask& t, int64_t first_key, int64_t count) {
  const Matrix queries{t.queries, t.width};
  const Matrix keys = read_block<Vector>(t, t.layout.key, first_key, count);
  if (t.rows < kFewestTransposed) {
    score_as_they_lie(queries, t.rows, keys, count, t.width, t.scores);
  } else {
    transpose_keys(keys, count, t.width, t.columns);
    multiply(queries, t.rows, {t.columns, kKeysPerBlock}, t.width, whole_vectors(count), false, t.scores,
             kKeysPerBlock);
  }
  for (int64_t r = 0; r < t.rows; ++r) update_row(t, r, count);
  const Matrix values = read_block<Vector>(t, t.layout.value, first_key, count);
  multiply({t.scores, kKeysPerBlock}, t.rows, values, count, t.width, true, t.values, t.width);
}

// Attends to the blocks of the task's keys that are visible to this degree; whether some are to a lesser one.
template <class Vector>
bool attend_where(const AttentionTask& t, Visible wanted) {
  bool leaves_some = false;
  for (int64_t first = t.first_key; first < t.last_key; first += kKeysPerBlock) {
    const int64_t count = smaller(kKeysPerBlock, t.last_key - first);
    const Visible visible = read_mask<Vector>(t, first, count);
    if (visible == wanted) attend_block<Vector>(t, first, count);
    leaves_some = leaves_some || (visible < wanted && visible != kNothing);
  }
  return leaves_some;
}

// Rows of a task, divided by their sums, to Y.
inline void write_rows(const AttentionTask& t) {
  const qxc_attention& a = *t.layout.given;
  for (int64_t r = 0; r < t.rows; ++r) {
    const float factor = 1 / (t.sums[r] == 0 ? 1 : t.sums[r]);  // 0 where no key is left
    float* values = t.values + r * t.width;
    for (int64_t d = 0; d < t.width; d += kLanes) store(values + d, load(values + d) * factor);
    if (t.layout.block_size > 1) rotate_back(values, a.head_size, t.layout.block_size);
    const int64_t token = t.first_query + r / t.layout.group, head = t.head * t.layout.group + r % t.layout.group;
    const int64_t at = ((t.batch * a.length + token) * a.heads + head) * a.head_size;
    write(values, a.head_size, t.is_half, element(a.y, t.is_half, at));
  }
}

// See `Kernels`.
template <class Vector>
void attend(const AttentionLayout& layout, int64_t task, float* scratch) {
  AttentionTask t = task_at(layout, task);
  t.queries = scratch;
  t.scores = t.queries + t.rows * t.width;
  t.mask = t.scores + t.rows * kKeysPerBlock;
  t.block = t.mask + t.rows * kKeysPerBlock;
  t.columns = t.block + kKeysPerBlock * t.width;
  const bool is_whole = layout.pieces == 1;
  set_results(t, is_whole ? t.columns + kKeysPerBlock * t.width : layout.partials + task * layout.partial_floats);
  read_queries<Vector>(t);
  std::memset(t.values, 0, static_cast<size_t>(t.rows * t.width) * sizeof *t.values);
  for (int64_t r = 0; r < t.rows; ++r) {
    t.largest[r] = -FLT_MAX;
    t.sums[r] = 0;
  }
  if (attend_where<Vector>(t, kVisible)) {
    // a finite mask leaves nothing of a key, unless all keys of a query have one
    bool is_seeing = true;
    for (int64_t r = 0; r < t.rows; ++r) is_seeing = is_seeing && t.largest[r] > kMasked / 2;
    if (!is_seeing) attend_where<Vector>(t, kNextToNothing);
  }
  if (is_whole) write_rows(t);
}

// See `Kernels`. The first piece's memory takes them all.
inline void combine(const AttentionLayout& layout, int64_t task) {
  const int64_t first = task * layout.pieces;
  AttentionTask t = task_at(layout, first), other = t;
  set_results(t, layout.partials + first * layout.partial_floats);
  for (int64_t piece = 1; piece < layout.pieces; ++piece) {
    set_results(other, layout.partials + (first + piece) * layout.partial_floats);
    for (int64_t r = 0; r < t.rows; ++r) {
      const float now = t.largest[r] > other.largest[r] ? t.largest[r] : other.largest[r];
      const float ours = exp_of_negative(splat(t.largest[r] - now))[0];
      const float theirs = exp_of_negative(splat(other.largest[r] - now))[0];
      float *sum = t.values + r * t.width, *part = other.values + r * t.width;
      for (int64_t d = 0; d < t.width; d += kLanes) store(sum + d, load(sum + d) * ours + load(part + d) * theirs);
      t.sums[r] = t.sums[r] * ours + other.sums[r] * theirs;
      t.largest[r] = now;
    }
  }
  write_rows(t);
}

}  // namespace
}  // namespace qxc
