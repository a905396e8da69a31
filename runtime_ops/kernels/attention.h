// Attention, which every instruction set compiles for itself: softmax as the keys come, a block of them at a time
// (Dao et al., FlashAttention, 2022), for all queries whose heads share the keys. Internal linkage: see scalar.h.
#pragma once

#include <cfloat>
#include <cmath>

#include "attention_layout.h"
#include "attention_products.h"
#include "cache_rows.h"
#include "elements.h"
#include "hadamard.h"
#include "kernels.h"
#include "lanes.h"
#include "scalar.h"

namespace qxc {
namespace {

constexpr int64_t kFewestTransposed = 8;    // rows for which it pays to transpose keys
constexpr int64_t kFewestDecoded = 17;      // rows for which it pays to decode a cache to floats
constexpr int64_t kWidestInIntegers = 512;  // a head, whose sums of products, of up to 128 * 32767, are below 2^31
constexpr int kRowsAhead = 24;              // of a cache in integers, asked of memory before they are read
constexpr int64_t kCacheLine = 64;          // bytes
constexpr float kMasked = -1e30f;           // a mask that leaves nothing of a score, but is finite

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

// What products in integers need beside the other scratch: it lies where `columns` are, which they do not need.
struct IntegerScratch {
  int16_t *queries, *weights;                        // [rows, width], [rows, kKeysPerBlock]
  float *query_scales, *weight_scales, *row_scales;  // [rows], [rows], [kKeysPerBlock]
  int64_t width;                                     // D in whole vectors of shorts
};

// One task: its place, and its memory.
struct AttentionTask {
  explicit AttentionTask(const AttentionLayout& layout) : layout(layout) {}
  const AttentionLayout& layout;
  int64_t batch, head, first_query, rows, first_key, last_key;
  int64_t width, mask_rows;  // D in whole vectors; rows of the mask that differ
  bool is_half;
  float *values, *largest, *sums;                    // results: [rows, width], [rows], [rows]
  float *queries, *scores, *mask, *block, *columns;  // a worker's scratch, for which attention.cpp has room
  IntegerScratch integers;
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
FloatMatrix read_block(const AttentionTask& t, const HeadRows& rows, int64_t first_key, int64_t count) {
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

template <class Vector>
void attend_block_in_floats(const AttentionTask& t, int64_t first_key, int64_t count) {
  const FloatMatrix queries{t.queries, t.width};
  const FloatMatrix keys = read_block<Vector>(t, t.layout.key, first_key, count);
  if (t.rows < kFewestTransposed) {
    score_as_they_lie(queries, t.rows, keys, count, t.width, t.scores);
  } else {
    transpose_keys(keys, count, t.width, t.columns);
    multiply(FloatsByFloats{queries, {t.columns, kKeysPerBlock}, false, {t.scores, kKeysPerBlock}}, t.rows, t.width,
             whole_vectors(count));
  }
  for (int64_t r = 0; r < t.rows; ++r) update_row(t, r, count);
  const FloatMatrix values = read_block<Vector>(t, t.layout.value, first_key, count);
  multiply(FloatsByFloats{{t.scores, kKeysPerBlock}, values, true, {t.values, t.width}}, t.rows, count, t.width);
}

bool multiplies_integers(const AttentionTask& t) {
  const AttentionLayout& layout = t.layout;
  return is_in_integers(layout.key.cache) && t.rows < kFewestDecoded && layout.given->head_size <= kWidestInIntegers;
}

void round_queries(const AttentionTask& t) {
  const IntegerScratch& s = t.integers;
  for (int64_t r = 0; r < t.rows; ++r) {
    s.query_scales[r] = round_to_shorts(t.queries + r * t.width, t.width, s.queries + r * s.width);
  }
}

// Rows of the task's head from some key on.
const uint8_t* rows_from(const AttentionTask& t, const HeadRows& head, int64_t first_key) {
  return reinterpret_cast<const uint8_t*>(head.at) + t.batch * head.batch + t.head * head.head + first_key * head.token;
}

// Centered codes of one block of keys or values, `rows` at once, and their scales: 0 in the last vector beyond `count`.
// Memory is asked for as many rows from `next` on.
template <int32_t cache, int rows>
inline Matrix<const int16_t> read_codes(const AttentionTask& t, int64_t D, const uint8_t* at, int64_t count,
                                        const uint8_t* next) {
  const int64_t stride = rows * whole_vectors(D, 2 * kLanes), bytes = code_bytes(cache, D) + kScaleBytes;
  int16_t* block = reinterpret_cast<int16_t*>(t.block);
  float* scales = t.integers.row_scales;
  for (int64_t k = 0; k < count; k += rows) {
    const uint8_t* some[rows];
    for (int64_t i = 0; i < rows * bytes; i += kCacheLine) __builtin_prefetch(next + k * bytes + i, 0, 2);  // to L2
    for (int r = 0; r < rows; ++r) {
      some[r] = at + smaller(k + r, count - 1) * bytes;
      scales[k + r] = centered_scale(some[r], D, cache);
    }
    int16_t* line = block + k / rows * stride;
    center_codes<cache, rows>(some, D, line);
    for (int64_t i = rows * D; i < stride; ++i) line[i] = 0;
  }
  for (int64_t k = count; k < whole_vectors(count); ++k) scales[k] = 0;
  return {block, stride};
}

// `head_size` is known to the compiler, or 0.
template <int32_t cache, int64_t head_size>
void attend_block_in_integers(const AttentionTask& t, int64_t first_key, int64_t count) {
  const IntegerScratch& s = t.integers;
  const int64_t D = head_size ? head_size : t.layout.given->head_size, width = whole_vectors(D, 2 * kLanes);
  const uint8_t *key_rows = rows_from(t, t.layout.key, first_key),
                *value_rows = rows_from(t, t.layout.value, first_key);
  const Matrix<const int16_t> keys = read_codes<cache, 1>(t, D, key_rows, count, value_rows);
  score_codes({s.queries, width}, s.query_scales, t.rows, keys, s.row_scales, count, width, t.scores);
  for (int64_t r = 0; r < t.rows; ++r) update_row(t, r, count);
  const uint8_t* next_keys = key_rows + kKeysPerBlock * t.layout.cache_row;
  const Matrix<const int16_t> values = read_codes<cache, 2>(t, D, value_rows, count, next_keys);
  for (int64_t r = 0; r < t.rows; ++r) {
    float* weights = t.scores + r * kKeysPerBlock;
    for (int64_t k = 0; k < count; k += kLanes) store(weights + k, load(weights + k) * load(s.row_scales + k));
    s.weight_scales[r] = round_to_shorts(weights, whole_vectors(count), s.weights + r * kKeysPerBlock);
  }
  multiply(PairsByPairs{{s.weights, kKeysPerBlock}, values, s.weight_scales, {t.values, t.width}}, t.rows,
           (count + 1) / 2, t.width);
}

template <int32_t cache>
void attend_block_in_integers(const AttentionTask& t, int64_t first_key, int64_t count) {
  switch (t.layout.given->head_size) {
    case 64: return attend_block_in_integers<cache, 64>(t, first_key, count);
    case 128: return attend_block_in_integers<cache, 128>(t, first_key, count);
    default: return attend_block_in_integers<cache, 0>(t, first_key, count);
  }
}

// Attends to one block of keys, whose mask has been read.
template <class Vector>
void attend_block(const AttentionTask& t, int64_t first_key, int64_t count) {
  if (!multiplies_integers(t)) return attend_block_in_floats<Vector>(t, first_key, count);
  if (t.layout.key.cache == QXC_CACHE_INT8) return attend_block_in_integers<QXC_CACHE_INT8>(t, first_key, count);
  attend_block_in_integers<QXC_CACHE_INT4>(t, first_key, count);
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
  set_results(t, is_whole ? t.columns + columns_floats(t.rows, layout.given->head_size)
                          : layout.partials + task * layout.partial_floats);
  read_queries<Vector>(t);
  if (multiplies_integers(t)) {
    IntegerScratch& s = t.integers;
    s.width = whole_vectors(t.width, 2 * kLanes);
    s.query_scales = t.columns;
    s.weight_scales = s.query_scales + t.rows;
    s.row_scales = s.weight_scales + t.rows;
    s.queries = reinterpret_cast<int16_t*>(s.row_scales + kKeysPerBlock);
    s.weights = s.queries + t.rows * s.width;
    round_queries(t);
  }
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
