// An attention as the kernels see it: where everything lies, and how the work is cut. Plain data.
#pragma once

#include <cstdint>

#include "qxc/kernels.h"

namespace qxc {

constexpr int64_t kKeysPerBlock = 64;  // whose scores are computed at once
constexpr int64_t kRowsPerTask = 64;   // queries of all heads that share keys, at most, but at least one token's
constexpr int64_t kTokensPerAppend = 256;
constexpr int64_t kLargestLanes = 16;  // rows of the scratch are whole vectors

constexpr int64_t kScaleBytes = 2;  // at the end of a row in integers

inline bool is_in_integers(int32_t cache) { return cache == QXC_CACHE_INT8 || cache == QXC_CACHE_INT4; }

// Bytes of a row's codes, two of four bits a byte.
inline int64_t code_bytes(int32_t cache, int64_t head_size) {
  return cache == QXC_CACHE_INT8 ? head_size : (head_size + 1) / 2;
}

// Floats of a worker's scratch for keys in columns, or for what products in integers need instead (attention.h).
inline int64_t columns_floats(int64_t rows, int64_t head_size) {
  const int64_t width = (head_size + 2 * kLargestLanes - 1) / (2 * kLargestLanes) * (2 * kLargestLanes);
  const int64_t columns = kKeysPerBlock * width, integers = kKeysPerBlock + rows * (2 + (width + kKeysPerBlock) / 2);
  return columns > integers ? columns : integers;
}

// Rows of D numbers, at `at` + the sum of the products with these strides, which count bytes.
struct HeadRows {
  const char* at;
  int64_t batch, head, token;
  int32_t cache;  // how they are kept
};

struct AttentionLayout {
  const qxc_attention* given;
  int64_t group;       // H / G
  int64_t cache_row;   // bytes of a row of the cache
  int64_t block_size;  // of the rotation of a cache's rows; 1 for none
  HeadRows key, value;
  void* rotated_keys;                // [B, G, T, D], with a rotary embedding and no cache
  int64_t mask_strides[4];           // in elements; 0 where the mask has one for all
  int64_t first_appended, appended;  // tokens of `present`, or of rotated_keys, that phase QXC_APPEND writes
  int64_t queries, query_blocks;     // tokens of a task
  int64_t keys, pieces;              // of a task
  // results of pieces, where there are several: of each row the sum of values, the largest score, and the sum
  float* partials;
  int64_t partial_floats;  // of a task
  float* scratch;
  int64_t scratch_floats;  // of a worker
};

}  // namespace qxc
