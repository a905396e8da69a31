// The public interface of attention: checks, the workspace, and how the work is cut.
#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "attention_layout.h"
#include "kernels.h"

namespace qxc {
namespace {

constexpr int64_t kLargest = int64_t{1} << 40;  // elements of a tensor, and more than any size
constexpr int64_t kFewTasks = 32;               // fewer are cut into pieces of the keys
constexpr int64_t kKeysPerPiece = 256;          // at least

// The block size that formats/rotation.py has for so many columns.
int64_t hadamard_block(int64_t columns) {
  const int64_t size = std::min<int64_t>(columns & -columns, 64);
  return size < 8 ? 1 : size;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether there may be a tensor of such a shape: sizes of 0 do not excuse the others.
bool is_possible(std::initializer_list<int64_t> shape) {
  int64_t count = 1;
  for (const int64_t size : shape) {
    if (size < 0 || size > kLargest) return false;
    if (size && count > kLargest / size) return false;
    count *= std::max<int64_t>(size, 1);
  }
  return true;
}

bool is_one_or(int64_t size, int64_t wanted) { return size == 1 || size == wanted; }

bool has_cache(const qxc_attention& a) { return a.has_cache != 0; }

int64_t element_bytes(const qxc_attention& a) { return a.element == QXC_FLOAT16 ? 2 : 4; }

int64_t present_tokens(const qxc_attention& a) { return std::max(a.past_tokens, a.tokens); }

bool is_in_place(const qxc_attention& a) { return a.past_key == a.present_key && a.past_value == a.present_value; }

bool rotates_without_cache(const qxc_attention& a) { return a.rotary_size && !has_cache(a); }

struct Layout : AttentionLayout {
  size_t bytes = 0;

  explicit Layout(const qxc_attention& a) : AttentionLayout{} {
    given = &a;
    const int64_t B = a.batch, L = a.length, T = a.tokens, G = a.kv_heads, D = a.head_size;
    const int64_t width = ceil_div(D, kLargestLanes) * kLargestLanes;
    group = a.heads / G;
    const bool integers = is_in_integers(a.has_cache);
    const int64_t row = D * element_bytes(a);
    cache_row = integers ? code_bytes(a.has_cache, D) + kScaleBytes : row;
    block_size = a.has_cache == QXC_CACHE_INT4 ? hadamard_block(D) : 1;
    queries = std::max<int64_t>(1, std::min(L, kRowsPerTask / group));
    query_blocks = ceil_div(L, queries);
    const int64_t places = B * G * query_blocks;
    keys = T;
    pieces = 1;
    if (places && places < kFewTasks && T > kKeysPerPiece) {
      keys = std::max(kKeysPerPiece, ceil_div(ceil_div(T * places, kFewTasks), kKeysPerBlock) * kKeysPerBlock);
      pieces = ceil_div(T, keys);
    }
    int64_t stride = 1;
    for (int i = 3; i >= 0; --i) {
      mask_strides[i] = a.mask_shape[i] == 1 ? 0 : stride;
      stride *= a.mask_shape[i];
    }
    if (has_cache(a)) {
      first_appended = is_in_place(a) ? T - L : 0;
      appended = is_in_place(a) ? L : present_tokens(a);
    } else {
      appended = a.rotary_size ? T : 0;
    }
    const int64_t rows = queries * group;
    const auto reserve = [&](int64_t count, int64_t size) {
      const uintptr_t at = reinterpret_cast<uintptr_t>(a.workspace) + bytes;
      bytes += static_cast<size_t>(ceil_div(count * size, QXC_ALIGNMENT) * QXC_ALIGNMENT);
      return at;
    };
    rotated_keys = reinterpret_cast<void*>(reserve(rotates_without_cache(a) ? B * G * T : 0, row));
    partial_floats = rows * (width + 2);
    partials = reinterpret_cast<float*>(reserve(pieces > 1 ? places * pieces * partial_floats : 0, sizeof(float)));
    scratch_floats = 2 * rows * kKeysPerBlock + kKeysPerBlock * width + rows * width + partial_floats;
    scratch_floats += columns_floats(rows, D);
    scratch_floats = ceil_div(scratch_floats, kLargestLanes) * kLargestLanes;
    scratch = reinterpret_cast<float*>(reserve(places ? a.workers * scratch_floats : 0, sizeof(float)));
    key = value = {nullptr, T * G * row, row, G * row, QXC_CACHE_FLOAT};
    key.at = static_cast<const char*>(a.key);
    value.at = static_cast<const char*>(a.value);
    if (has_cache(a)) {
      key = value = {nullptr, G * present_tokens(a) * cache_row, present_tokens(a) * cache_row, cache_row, a.has_cache};
      key.at = static_cast<const char*>(a.present_key);
      value.at = static_cast<const char*>(a.present_value);
    } else if (a.rotary_size) {
      key = {static_cast<const char*>(rotated_keys), G * T * row, T * row, row, QXC_CACHE_FLOAT};
    }
  }
};

bool are_sizes_sound(const qxc_attention& a) {
  const int64_t B = a.batch, L = a.length, T = a.tokens, H = a.heads, G = a.kv_heads, D = a.head_size;
  if (H < 1 || G < 1 || D < 1 || H % G != 0 || a.workers < 1) return false;
  const int64_t present = has_cache(a) ? present_tokens(a) : T;
  // a row of the scratch is a vector at least
  if (!is_possible({B, L, H, D}) || !is_possible({B, G, present, D + kScaleBytes}) ||
      !is_possible({a.workers, H, D + 256})) {
    return false;
  }
  if (has_cache(a) && (T < L || a.past_tokens < T - L)) return false;
  if (rotates_without_cache(a) && T != L) return false;
  const bool is_rotation = a.rotary_size >= 0 && a.rotary_size <= D && a.rotary_size % 2 == 0;
  if (!is_rotation || (a.rotary_size && !is_one_or(a.rotary_batch, B))) return false;
  const int64_t scores[4] = {B, H, L, T};
  for (int i = 0; i < 4; ++i) {
    if (!is_one_or(a.mask_shape[i], scores[i])) return false;
  }
  return is_possible({a.mask_shape[0], a.mask_shape[1], a.mask_shape[2], a.mask_shape[3]});
}

// Whether what is read or written is there.
bool has_tensors(const qxc_attention& a) {
  if (a.has_cache < 0 || a.has_cache > QXC_CACHE_INT4) return false;
  if (!a.kernels || (a.element != QXC_FLOAT32 && a.element != QXC_FLOAT16) || !(a.softcap >= 0)) return false;
  if (a.batch && a.length && !(a.query && a.y)) return false;
  if (a.batch && a.length && a.tokens && !(a.key && a.value && a.mask)) return false;
  if (a.batch && a.length && a.rotary_size && !(a.cos && a.sin)) return false;
  if (!a.batch || !has_cache(a)) return true;
  if (a.past_tokens && !(a.past_key && a.past_value)) return false;
  return !present_tokens(a) || (a.present_key && a.present_value);
}

}  // namespace
}  // namespace qxc

using namespace qxc;

qxc_status qxc_attention_check(const qxc_attention* attention, size_t* workspace_bytes) {
  if (!are_sizes_sound(*attention)) return QXC_BAD_SIZE;
  if (!has_tensors(*attention)) return QXC_BAD_ARGUMENT;
  *workspace_bytes = Layout(*attention).bytes;
  return QXC_OK;
}

int64_t qxc_attention_tasks(const qxc_attention* attention, qxc_attention_phase phase) {
  const Layout layout(*attention);
  const int64_t heads = attention->batch * attention->kv_heads, places = heads * layout.query_blocks;
  switch (phase) {
    case QXC_APPEND: return heads * ceil_div(layout.appended, kTokensPerAppend);
    case QXC_ATTEND: return places * layout.pieces;
    case QXC_COMBINE: return layout.pieces > 1 ? places : 0;
  }
  return 0;
}

void qxc_attention_compute(const qxc_attention* attention, qxc_attention_phase phase, int64_t worker, int64_t first,
                           int64_t last) {
  const Layout layout(*attention);
  const Kernels& kernels = *attention->kernels;
  for (int64_t task = first; task < last; ++task) {
    switch (phase) {
      case QXC_APPEND: kernels.append(layout, task, layout.scratch + worker * layout.scratch_floats); break;
      case QXC_ATTEND: kernels.attend(layout, task, layout.scratch + worker * layout.scratch_floats); break;
      case QXC_COMBINE: kernels.combine(layout, task); break;
    }
  }
}
