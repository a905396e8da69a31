#include "operator.h"

#include <algorithm>

namespace qxc::ort {

std::vector<Registration::Make>& Registration::all() {
  static std::vector<Make> makes;
  return makes;
}

Tensor Node::read(const KernelContext& context, const ExpectedInput& expected) const {
  if (expected.constant && context.data(expected.index) == expected.constant) {
    return {expected.type, expected.constant_shape, expected.constant};  // asking again takes a microsecond
  }
  Tensor tensor = input(context, expected.index, expected.name);
  check(expected, tensor);
  return tensor;
}

void Node::check_constant(const KernelInfo& info, ExpectedInput& expected) const {
  const auto tensor = info.constant(expected.index);
  if (!tensor) return;
  check(expected, *tensor);
  expected.constant = tensor->data;
  expected.constant_shape = tensor->shape;
}

void Node::check(const ExpectedInput& expected, const Tensor& tensor) const {
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

Tensor Node::input(const KernelContext& context, size_t index, const char* name) const {
  std::optional<Tensor> tensor = context.input(index);
  if (!tensor) throw error(kInvalidGraph, std::string("input '") + name + "' is missing");
  return std::move(*tensor);
}

void* Node::output(const KernelContext& context, size_t index, ElementType type, const Shape& shape) const {
  void* data = context.output(index, type, shape);
  if (!data && element_count(shape.begin(), shape.end()) != 0) {
    throw error(kInvalidGraph,
                "output " + std::to_string(index) + " is not " + to_string(type) + " " + to_string(shape));
  }
  return data;
}

int64_t Node::attribute_int(const KernelInfo& info, const char* name) const {
  const auto value = info.attribute_int(name);
  if (!value) throw error(kInvalidGraph, std::string("attribute '") + name + "' is missing, or no integer");
  return *value;
}

float Node::attribute_float(const KernelInfo& info, const char* name) const {
  const auto value = info.attribute_float(name);
  if (!value) throw error(kInvalidGraph, std::string("attribute '") + name + "' is missing, or no float");
  return *value;
}

std::string Node::attribute_string(const KernelInfo& info, const char* name) const {
  auto value = info.attribute_string(name);
  if (!value) throw error(kInvalidGraph, std::string("attribute '") + name + "' is missing, or no string");
  return std::move(*value);
}

Error Node::error(ErrorCode code, const std::string& problem) const {
  return Error(code, "qxc node '" + printable(name_) + "': " + problem);
}

}  // namespace qxc::ort
