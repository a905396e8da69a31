// The public interface: checks, the workspace, and which kernel computes what.
#include <algorithm>

#include "kernels.h"
#include "qxc/kernels.h"
#include "scalar.h"

namespace qxc {
namespace {

constexpr int64_t kLargestDimension = int64_t{1} << 40;  // products of two stay far from overflow
constexpr int64_t kLargestUnitA8 = 256, kLargestUnitA16 = 128;
constexpr int64_t kFewestOutputsA16 = 64;  // fewer may all cancel, and leave less than 16 bits can tell

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool is_format(const qxc_weight& weight) {
  const int bits = weight.bits;
  switch (weight.code) {
    case QXC_INT:
    case QXC_UINT: return (bits >= 2 && bits <= 6) || bits == 8;
    case QXC_LUT: return bits >= 2 && bits <= 4;
    case QXC_FP: return bits == 4;
    case QXC_E2M3:
    case QXC_E3M2: return bits == 6;
    case QXC_E4M3:
    case QXC_E5M2: return bits == 8;
  }
  return false;
}

bool is_scale(qxc_scale scale) {
  return scale == QXC_SCALE_FLOAT16 || scale == QXC_SCALE_E8M0 || scale == QXC_SCALE_TWO_LEVEL;
}

bool is_group_size(int64_t size, int64_t columns) {
  return size == 16 || size == 32 || size == 64 || size == 128 || size == 256 || size == columns;
}

PackedWeight packed_weight(const qxc_weight& weight) {
  return {weight.rows,
          weight.columns,
          weight.group_size,
          ceil_div(weight.columns, weight.group_size),
          ceil_div(weight.columns, kBlockColumns),
          static_cast<const uint8_t*>(weight.packed),
          weight.scale,
          weight.scales,
          static_cast<const uint16_t*>(weight.row_scales),
          static_cast<const uint8_t*>(weight.zero_points),
          static_cast<const int8_t*>(weight.codebook),
          weight.codebook_per_tensor != 0};
}

bool is_gated(const qxc_matmul& product) { return product.epilogue == QXC_SILU_GATE; }

// Floats of 6 and 8 bits, which no bytes hold: all products are in float, with A rounded to 8 bits for a8 all the same.
bool is_small_float(const qxc_weight& weight) { return weight.code >= QXC_E2M3; }

bool rounds(const qxc_matmul& product) {
  if (product.activation != QXC_A16) return product.activation == QXC_A8;
  return product.weight.rows >= kFewestOutputsA16 && !is_small_float(product.weight);
}

// Whether products in float read a copy of A.
bool copies(const qxc_matmul& product) {
  return product.element == QXC_FLOAT16 || (rounds(product) && is_small_float(product.weight));
}

// The parts of a product's workspace.
struct Workspace {
  QuantizedRows rows{};
  bool* is_done;    // [M]: rows that the integers hold
  float* copied;    // [M, K]: A, where it is float16, or rounded to 8 bits for products in float
  float* products;  // [M, N]: gate and up, before the epilogue
  size_t bytes = 0;

  explicit Workspace(const qxc_matmul& product) {
    const qxc_weight& weight = product.weight;
    const int64_t M = product.rows;
    const bool a16 = product.activation == QXC_A16;
    const int64_t largest_unit = a16 ? kLargestUnitA16 : kLargestUnitA8;
    is_done = reserve<bool>(product, M);
    copied = reserve<float>(product, copies(product) ? M * weight.columns : 0);
    products = reserve<float>(product, is_gated(product) ? M * weight.rows : 0);
    if (!rounds(product)) return;
    rows.rows = M;
    rows.columns = ceil_div(weight.columns, kBlockColumns) * kBlockColumns;
    rows.unit = weight.group_size >= weight.columns ? largest_unit : std::min(weight.group_size, largest_unit);
    rows.units = ceil_div(weight.columns, rows.unit);
    rows.high = reserve<int8_t>(product, M * rows.units * rows.unit);
    rows.low = a16 ? reserve<int8_t>(product, M * rows.units * rows.unit) : nullptr;
    rows.high_sums = reserve<int32_t>(product, M * rows.units);
    rows.low_sums = a16 ? reserve<int32_t>(product, M * rows.units) : nullptr;
    rows.scales = reserve<float>(product, a16 ? M * rows.units : M);
    rows.sums = reserve<float>(product, M * rows.units);
  }

  template <class T>
  T* reserve(const qxc_matmul& product, int64_t count) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(product.workspace) + bytes;
    bytes += (static_cast<size_t>(count) * sizeof(T) + QXC_ALIGNMENT - 1) / QXC_ALIGNMENT * QXC_ALIGNMENT;
    return reinterpret_cast<T*>(at);
  }
};

// A row of A as the integers stand for it.
void restore(const QuantizedRows& rows, int64_t row, int64_t columns, float* values) {
  for (int64_t k = 0; k < columns; ++k) {
    values[k] = rows.scales[row] * static_cast<float>(rows.high[unit_offset(rows, row, k / rows.unit) + k % rows.unit]);
  }
}

// Gate and up of tiles [first, last), which lie in the workspace, become Y.
void combine(const qxc_matmul& product, const float* products, int64_t first, int64_t last) {
  const int64_t N = product.weight.rows;
  const bool is_half = product.element == QXC_FLOAT16;
  const int64_t element_bytes = is_half ? 2 : 4;
  for (int64_t m = 0; m < product.rows; ++m) {
    char* y = static_cast<char*>(product.y) + (m * N + first * kTileRows) / 2 * element_bytes;
    product.kernels->silu_gate(products + m * N + first * kTileRows, (last - first) / 2, is_half, y);
  }
}

bool all(const bool* first, int64_t count, bool value) {
  return std::all_of(first, first + count, [value](bool each) { return each == value; });
}

}  // namespace
}  // namespace qxc

using namespace qxc;

int32_t qxc_kernels_version(void) { return 256 * QXC_KERNELS_VERSION_MAJOR + QXC_KERNELS_VERSION_MINOR; }

qxc_status qxc_weight_check(const qxc_weight* weight, qxc_weight_bytes* bytes) {
  const int64_t N = weight->rows, K = weight->columns;
  if (N < 1 || K < 1 || N > kLargestDimension / K) return QXC_BAD_SIZE;
  if (!is_format(*weight) || !is_scale(weight->scale) || !is_group_size(weight->group_size, K)) return QXC_BAD_FORMAT;
  const int64_t tiles = ceil_div(N, kTileRows);
  const int64_t per_group = tiles * ceil_div(K, weight->group_size) * kTileRows;
  const int64_t codebooks = weight->code != QXC_LUT ? 0 : weight->codebook_per_tensor ? 1 : tiles * kTileRows;
  bytes->packed = static_cast<size_t>(tiles * ceil_div(K, kBlockColumns) * weight->bits * kLineBytes);
  bytes->scales = static_cast<size_t>(weight->scale == QXC_SCALE_FLOAT16 ? 2 * per_group : per_group);
  bytes->row_scales = static_cast<size_t>(weight->scale == QXC_SCALE_TWO_LEVEL ? 2 * tiles * kTileRows : 0);
  bytes->zero_points = static_cast<size_t>(weight->code == QXC_UINT ? per_group : 0);
  bytes->codebook = static_cast<size_t>(codebooks << weight->bits);
  return QXC_OK;
}

qxc_status qxc_matmul_check(const qxc_matmul* product, size_t* workspace_bytes) {
  const qxc_weight& weight = product->weight;
  qxc_weight_bytes bytes;
  if (const qxc_status status = qxc_weight_check(&weight, &bytes)) return status;
  const int64_t largest = std::max(weight.rows, weight.columns);
  if (product->rows < 1 || product->rows > kLargestDimension / largest) return QXC_BAD_SIZE;
  if (!product->kernels || !weight.packed || !weight.scales || (bytes.row_scales && !weight.row_scales) ||
      (bytes.zero_points && !weight.zero_points) || (bytes.codebook && !weight.codebook) || !product->a ||
      !product->y) {
    return QXC_BAD_ARGUMENT;
  }
  const bool known_activation =
      product->activation == QXC_A8 || product->activation == QXC_A16 || product->activation == QXC_A32;
  const bool known_element = product->element == QXC_FLOAT32 || product->element == QXC_FLOAT16;
  const bool known_epilogue = product->epilogue == QXC_NO_EPILOGUE || is_gated(*product);
  const bool known_stride = product->bias_stride == 0 || product->bias_stride == 1;
  if (!known_activation || !known_element || !known_epilogue || !known_stride) return QXC_BAD_ARGUMENT;
  if (is_gated(*product) && weight.rows % (2 * kTileRows) != 0) return QXC_BAD_SIZE;
  *workspace_bytes = Workspace(*product).bytes;
  return QXC_OK;
}

void qxc_matmul_prepare(const qxc_matmul* product, int64_t first_row, int64_t last_row) {
  const Workspace workspace(*product);
  const int64_t K = product->weight.columns;
  const Kernels& kernels = *product->kernels;
  const QuantizeRow quantize = product->activation == QXC_A8 ? kernels.quantize_a8 : kernels.quantize_a16;
  for (int64_t m = first_row; m < last_row; ++m) {
    const float* row = static_cast<const float*>(product->a) + m * K;
    float* copy = workspace.copied + m * K;
    if (product->element == QXC_FLOAT16) {
      kernels.widen(static_cast<const uint16_t*>(product->a) + m * K, K, copy);
      row = copy;
    }
    const bool is_rounded = rounds(*product) && quantize(row, K, m, workspace.rows);
    workspace.is_done[m] = is_rounded && !is_small_float(product->weight);
    if (workspace.is_done[m] || !copies(*product)) continue;
    if (is_rounded) {
      restore(workspace.rows, m, K, copy);
    } else if (row != copy) {
      std::copy(row, row + K, copy);
    }
  }
}

int64_t qxc_matmul_tiles(const qxc_matmul* product) { return ceil_div(product->weight.rows, kTileRows); }

void qxc_matmul_compute(const qxc_matmul* product, int64_t first_tile, int64_t last_tile) {
  static const float no_bias = 0;
  const Workspace workspace(*product);
  const PackedWeight weight = packed_weight(product->weight);
  const MatMulFamily kernels = product->kernels->matmul(product->weight.code, product->weight.bits);
  const bool is_half = product->element == QXC_FLOAT16;
  const bool gated = is_gated(*product);
  const Output out{gated ? workspace.products : product->y, is_half && !gated, weight.rows,
                   product->bias ? product->bias : &no_bias, product->bias ? product->bias_stride : 0};
  if (!all(workspace.is_done, product->rows, false)) {
    const MatMulTiles matmul = product->activation == QXC_A8 ? kernels.a8 : kernels.a16;
    matmul(weight, workspace.rows, first_tile, last_tile, out);
  }
  if (!all(workspace.is_done, product->rows, true)) {
    const float* a = copies(*product) ? workspace.copied : static_cast<const float*>(product->a);
    kernels.a32(weight, {product->rows, a, workspace.is_done}, first_tile, last_tile, out);
  }
  if (gated) combine(*product, workspace.products, first_tile, last_tile);
}

qxc_status qxc_rotate(const qxc_kernels* kernels, qxc_element element, int64_t rows, int64_t columns,
                      int64_t block_size, const void* x, void* y) {
  const bool is_block = block_size == 8 || block_size == 16 || block_size == 32 || block_size == 64;
  if (!is_block || rows < 0 || columns < 0 || columns % block_size != 0) return QXC_BAD_SIZE;
  if (columns && rows > kLargestDimension / columns) return QXC_BAD_SIZE;
  if (element == QXC_FLOAT32) {
    kernels->rotate(static_cast<const float*>(x), rows * columns, block_size, static_cast<float*>(y));
    return QXC_OK;
  }
  for (int64_t at = 0; at < rows * columns; at += block_size) {
    float block[64];
    kernels->widen(static_cast<const uint16_t*>(x) + at, block_size, block);
    kernels->rotate(block, block_size, block_size, block);
    uint16_t halves[64];
    for (int64_t i = 0; i < block_size; ++i) halves[i] = float_to_half(block[i]);
    std::memcpy(static_cast<uint16_t*>(y) + at, halves, static_cast<size_t>(block_size) * sizeof *halves);
  }
  return QXC_OK;
}

qxc_status qxc_norm_check(const qxc_norm* norm) {
  if (norm->rows < 0 || norm->columns < 1 || norm->rows > kLargestDimension / norm->columns) return QXC_BAD_SIZE;
  const bool known_element = norm->element == QXC_FLOAT32 || norm->element == QXC_FLOAT16;
  if (!norm->kernels || !known_element || !(norm->epsilon >= 0)) return QXC_BAD_ARGUMENT;
  const bool has_tensors = norm->x && norm->gain && norm->y && (!norm->skip || norm->sum);
  return norm->rows && !has_tensors ? QXC_BAD_ARGUMENT : QXC_OK;
}

void qxc_norm_compute(const qxc_norm* norm, int64_t first_row, int64_t last_row) {
  norm->kernels->normalize(*norm, first_row, last_row);
}

void qxc_weight_decode_row(const qxc_weight* weight, int64_t row, int64_t first_column, int64_t last_column,
                           float* values) {
  decode_row(packed_weight(*weight), weight->code, weight->bits, row, first_column, last_column, values);
}
