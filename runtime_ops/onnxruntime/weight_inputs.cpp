#include "weight_inputs.h"

#include <algorithm>

namespace qxc::ort {
namespace {

constexpr char kLayout[] = "tile16.v1";

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

WeightInputs::WeightInputs(WeightFormat format, const KernelInfo& info, size_t first) : node_(info.node_name()) {
  weight_.code = format.code;
  weight_.bits = format.bits;
  weight_.rows = attribute_int(info, "N");
  weight_.columns = attribute_int(info, "K");
  weight_.group_size = attribute_int(info, "group_size");
  const std::string layout = attribute_string(info, "layout");
  if (layout != kLayout) {
    throw error(kInvalidGraph, "layout '" + printable(layout) + "' is not known to this library, which reads '" +
                                   kLayout + "': a newer qxcompiler may");
  }
  qxc_weight_bytes bytes;
  switch (qxc_weight_check(&weight_, &bytes)) {
    case QXC_OK: break;
    case QXC_BAD_SIZE:
      throw error(kInvalidGraph,
                  "K = " + std::to_string(weight_.columns) + ", N = " + std::to_string(weight_.rows) + " is no matrix");
    default:
      throw error(kInvalidGraph,
                  "group_size " + std::to_string(weight_.group_size) +
                      (format.code == QXC_MXFP4 ? " is not 32" : " is neither 16, 32, 64, 128, 256 nor K"));
  }

  const int64_t tiles = ceil_div(weight_.rows, QXC_TILE_ROWS);
  const Shape codes{tiles, ceil_div(weight_.columns, QXC_BLOCK_COLUMNS), weight_.bits, QXC_LINE_BYTES};
  const Shape per_group{tiles, ceil_div(weight_.columns, weight_.group_size), QXC_TILE_ROWS};
  inputs_ = {{first, "packed", kUint8, {codes}},
             {first + 1, "scales", format.code == QXC_MXFP4 ? kUint8 : kFloat16, {per_group}}};
  if (format.code == QXC_UINT) inputs_.push_back({first + 2, "zero_points", kUint8, {per_group}});
  if (format.code == QXC_LUT) {
    const int64_t entries = int64_t{1} << format.bits;
    inputs_.push_back({first + 2, "codebook", kInt8, {{1, 1, entries}, {tiles, QXC_TILE_ROWS, entries}}});
  }
  for (ExpectedInput& expected : inputs_) check_constant(info, expected);
}

qxc_weight WeightInputs::read(const KernelContext& context) const {
  qxc_weight weight = weight_;
  weight.packed = read(context, inputs_[0]).data;
  weight.scales = read(context, inputs_[1]).data;
  if (weight.code == QXC_UINT) weight.zero_points = read(context, inputs_[2]).data;
  if (weight.code == QXC_LUT) {
    const Tensor codebook = read(context, inputs_[2]);
    weight.codebook = codebook.data;
    weight.codebook_per_tensor = codebook.shape == inputs_[2].shapes[0];
  }
  return weight;
}

Tensor WeightInputs::read(const KernelContext& context, const ExpectedInput& expected) const {
  if (expected.constant && context.data(expected.index) == expected.constant) {
    return {expected.type, expected.constant_shape, expected.constant};  // asking again takes a microsecond
  }
  Tensor tensor = input(context, expected.index, expected.name);
  check(expected, tensor);
  return tensor;
}

void WeightInputs::check_constant(const KernelInfo& info, ExpectedInput& expected) const {
  const auto tensor = info.constant(expected.index);
  if (!tensor) return;
  check(expected, *tensor);
  expected.constant = tensor->data;
  expected.constant_shape = tensor->shape;
}

void WeightInputs::check(const ExpectedInput& expected, const Tensor& tensor) const {
  if (tensor.type != expected.type) {
    throw error(kInvalidArgument, std::string("input '") + expected.name + "' is " + to_string(tensor.type) +
                                      " instead of " + to_string(expected.type));
  }
  const std::vector<Shape>& shapes = expected.shapes;
  if (std::find(shapes.begin(), shapes.end(), tensor.shape) == shapes.end()) {
    std::string wanted;
    for (const Shape& shape : shapes) wanted += (wanted.empty() ? "" : " or ") + to_string(shape);
    throw error(kInvalidArgument, std::string("input '") + expected.name + "' has shape " + to_string(tensor.shape) +
                                      " instead of " + wanted);
  }
}

Tensor WeightInputs::input(const KernelContext& context, size_t index, const char* name) const {
  std::optional<Tensor> tensor = context.input(index);
  if (!tensor) throw error(kInvalidGraph, std::string("input '") + name + "' is missing");
  return std::move(*tensor);
}

void* WeightInputs::output(const KernelContext& context, ElementType type, const Shape& shape) const {
  void* data = context.output(type, shape);
  if (!data && element_count(shape.begin(), shape.end()) != 0) {
    throw error(kInvalidGraph, "the output is not " + to_string(type) + " " + to_string(shape));
  }
  return data;
}

int64_t WeightInputs::attribute_int(const KernelInfo& info, const char* name) const {
  const auto value = info.attribute_int(name);
  if (!value) throw error(kInvalidGraph, std::string("attribute '") + name + "' is missing, or no integer");
  return *value;
}

std::string WeightInputs::attribute_string(const KernelInfo& info, const char* name) const {
  auto value = info.attribute_string(name);
  if (!value) throw error(kInvalidGraph, std::string("attribute '") + name + "' is missing, or no string");
  return std::move(*value);
}

Error WeightInputs::error(ErrorCode code, const std::string& problem) const {
  return Error(code, "qxc node '" + printable(node_) + "': " + problem);
}

}  // namespace qxc::ort
