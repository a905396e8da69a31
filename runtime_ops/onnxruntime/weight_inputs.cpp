#include "weight_inputs.h"

namespace qxc::ort {
namespace {

constexpr char kLayout[] = "tile16.v1";

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

WeightInputs::WeightInputs(WeightFormat format, const KernelInfo& info) : node_(info.node_name()) {
  weight_.code = format.code;
  weight_.bits = format.bits;
  weight_.rows = info.attribute_int("N");
  weight_.columns = info.attribute_int("K");
  weight_.group_size = info.attribute_int("group_size");
  const std::string layout = info.attribute_string("layout");
  if (layout != kLayout) {
    throw error(kInvalidGraph, "layout '" + layout + "' is not known to this library, which reads '" + kLayout +
                                   "': a newer qxcompiler may");
  }
  qxc_weight_bytes bytes;
  switch (qxc_weight_check(&weight_, &bytes)) {
    case QXC_OK: return;
    case QXC_BAD_SIZE:
      throw error(kInvalidGraph,
                  "K = " + std::to_string(weight_.columns) + ", N = " + std::to_string(weight_.rows) + " is no matrix");
    default:
      throw error(kInvalidGraph,
                  "group_size " + std::to_string(weight_.group_size) +
                      (format.code == QXC_MXFP4 ? " is not 32" : " is neither 16, 32, 64, 128, 256 nor K"));
  }
}

Error WeightInputs::error(ErrorCode code, const std::string& problem) const {
  return Error(code, "qxc node '" + node_ + "': " + problem);
}

Tensor WeightInputs::expect(const KernelContext& context, size_t index, const char* name, ElementType type,
                            const Shape& shape) const {
  Tensor tensor = context.input(index);
  if (tensor.type != type) {
    throw error(kInvalidArgument, std::string("input '") + name + "' has element type " + std::to_string(tensor.type) +
                                      " instead of " + std::to_string(type));
  }
  if (tensor.shape != shape) {
    throw error(kInvalidArgument, std::string("input '") + name + "' has shape " + to_string(tensor.shape) +
                                      " instead of " + to_string(shape));
  }
  return tensor;
}

qxc_weight WeightInputs::read(const KernelContext& context, size_t first) const {
  qxc_weight weight = weight_;
  const int64_t tiles = ceil_div(weight.rows, QXC_TILE_ROWS);
  const Shape codes{tiles, ceil_div(weight.columns, QXC_BLOCK_COLUMNS), weight.bits, QXC_LINE_BYTES};
  const Shape per_group{tiles, ceil_div(weight.columns, weight.group_size), QXC_TILE_ROWS};
  weight.packed = expect(context, first, "packed", kUint8, codes).data;
  weight.scales = expect(context, first + 1, "scales", weight.code == QXC_MXFP4 ? kUint8 : kFloat16, per_group).data;
  if (weight.code == QXC_UINT) {
    weight.zero_points = expect(context, first + 2, "zero_points", kUint8, per_group).data;
  } else if (weight.code == QXC_LUT) {
    const int64_t entries = int64_t{1} << weight.bits;
    const Shape one{1, 1, entries}, one_a_row{tiles, QXC_TILE_ROWS, entries};
    weight.codebook_per_tensor = context.input(first + 2).shape == one;
    weight.codebook = expect(context, first + 2, "codebook", kInt8, weight.codebook_per_tensor ? one : one_a_row).data;
  }
  return weight;
}

}  // namespace qxc::ort
