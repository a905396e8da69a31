#include "context.h"

#include <algorithm>
#include <cstring>
#include <iterator>

namespace qxc::ort {
namespace {

constexpr size_t kLongestText = 200;

// Asks the runtime whether there is something: its error, which names no node, is dropped.
bool succeeds(Table api, OrtStatus* status) {
  if (status) ReleaseStatus::call(api, status);
  return !status;
}

Tensor tensor_of(Table api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(GetTensorTypeAndShape::call(api, value, &info));
  int type = 0;
  size_t rank = 0;
  OrtStatus* status = GetTensorElementType::call(api, static_cast<const OrtTensorTypeAndShapeInfo*>(info), &type);
  if (!status) status = GetDimensionsCount::call(api, static_cast<const OrtTensorTypeAndShapeInfo*>(info), &rank);
  Shape shape(rank);
  if (!status) {
    status = GetDimensions::call(api, static_cast<const OrtTensorTypeAndShapeInfo*>(info), shape.data(), rank);
  }
  ReleaseTensorTypeAndShapeInfo::call(api, info);
  check(status);

  void* data = nullptr;  // the table has no reader for constants; nothing is written through it but outputs
  check(GetTensorMutableData::call(api, const_cast<OrtValue*>(value), &data));
  return {static_cast<ElementType>(type), std::move(shape), data};
}

}  // namespace

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

std::string to_string(ElementType type) {
  static constexpr const char* kNames[] = {"undefined", "float32", "uint8",     "int8",       "uint16",  "int16",
                                           "int32",     "int64",   "string",    "bool",       "float16", "float64",
                                           "uint32",    "uint64",  "complex64", "complex128", "bfloat16"};
  const size_t at = static_cast<size_t>(type);
  return at < std::size(kNames) ? kNames[at] : "element type " + std::to_string(type);
}

std::string printable(const std::string& text) {
  std::string shown = text.substr(0, kLongestText);
  std::replace_if(shown.begin(), shown.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return shown.size() < text.size() ? shown + "..." : shown;
}

int64_t element_count(Shape::const_iterator first, Shape::const_iterator last) {
  if (std::find(first, last, 0) != last) return 0;
  int64_t count = 1;
  for (; first != last; ++first) count *= *first;  // the memory exists, so that this is no overflow
  return count;
}

void Tensor::align(size_t size) {
  if (reinterpret_cast<uintptr_t>(data) % size == 0) return;
  const size_t bytes = static_cast<size_t>(element_count(shape.begin(), shape.end())) * size;
  copy.reset(new char[bytes]);
  data = std::memcpy(copy.get(), data, bytes);
}

std::string KernelInfo::node_name() const {
  size_t size = 0;
  check(KernelInfoGetNodeName::call(api_, info_, static_cast<char*>(nullptr), &size));
  std::string name(size, '\0');
  check(KernelInfoGetNodeName::call(api_, info_, name.data(), &size));
  name.resize(size ? size - 1 : 0);
  return name;
}

std::optional<int64_t> KernelInfo::attribute_int(const char* name) const {
  int64_t value = 0;
  if (!succeeds(api_, KernelInfoGetAttributeInt::call(api_, info_, name, &value))) return {};
  return value;
}

std::optional<float> KernelInfo::attribute_float(const char* name) const {
  float value = 0;
  if (!succeeds(api_, KernelInfoGetAttributeFloat::call(api_, info_, name, &value))) return {};
  return value;
}

std::optional<std::string> KernelInfo::attribute_string(const char* name) const {
  size_t size = 0;
  if (!succeeds(api_, KernelInfoGetAttributeString::call(api_, info_, name, static_cast<char*>(nullptr), &size))) {
    return {};
  }
  std::string value(size, '\0');
  check(KernelInfoGetAttributeString::call(api_, info_, name, value.data(), &size));
  value.resize(size ? size - 1 : 0);
  return value;
}

std::optional<Tensor> KernelInfo::constant(size_t index) const {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  check(KernelInfoGetConstantInput::call(api_, info_, index, &is_constant, &value));
  if (!is_constant || !value) return {};
  return tensor_of(api_, value);
}

std::optional<Tensor> KernelContext::input(size_t index) const {
  const OrtValue* value = nullptr;
  check(KernelContextGetInput::call(api_, static_cast<const OrtKernelContext*>(context_), index, &value));
  if (!value) return {};
  return tensor_of(api_, value);
}

const void* KernelContext::data(size_t index) const {
  const OrtValue* value = nullptr;
  check(KernelContextGetInput::call(api_, static_cast<const OrtKernelContext*>(context_), index, &value));
  void* data = nullptr;
  if (value) check(GetTensorMutableData::call(api_, const_cast<OrtValue*>(value), &data));
  return data;
}

void* KernelContext::output(size_t index, ElementType type, const Shape& shape) const {
  OrtValue* value = nullptr;
  check(KernelContextGetOutput::call(api_, context_, index, shape.data(), shape.size(), &value));
  if (!value) return nullptr;
  const Tensor tensor = tensor_of(api_, value);
  return tensor.type == type && tensor.shape == shape ? const_cast<void*>(tensor.data) : nullptr;
}

std::optional<int64_t> ShapeContext::attribute_int(const char* name) const {
  const OrtOpAttr* attribute = nullptr;
  if (!succeeds(api_, ShapeInferContextGetAttribute::call(api_, context_, name, &attribute)) || !attribute) return {};
  int64_t value = 0;
  size_t size = 0;
  OrtStatus* status = ReadOpAttr::call(api_, attribute, static_cast<int>(kIntAttribute), static_cast<void*>(&value),
                                       sizeof value, &size);
  if (!succeeds(api_, status)) return {};
  return value;
}

std::optional<TypeAndShape> ShapeContext::input(size_t index) const {
  size_t count = 0;
  check(ShapeInferContextGetInputCount::call(api_, context_, &count));
  if (index >= count) return {};
  OrtTensorTypeAndShapeInfo* info = nullptr;  // the context's
  check(ShapeInferContextGetInputTypeShape::call(api_, context_, index, &info));
  size_t rank = 0;
  check(GetDimensionsCount::call(api_, static_cast<const OrtTensorTypeAndShapeInfo*>(info), &rank));
  if (rank == 0) return {};
  int type = 0;
  check(GetTensorElementType::call(api_, static_cast<const OrtTensorTypeAndShapeInfo*>(info), &type));
  Shape sizes(rank);
  std::vector<const char*> names(rank);
  check(GetDimensions::call(api_, static_cast<const OrtTensorTypeAndShapeInfo*>(info), sizes.data(), rank));
  check(GetSymbolicDimensions::call(api_, static_cast<const OrtTensorTypeAndShapeInfo*>(info), names.data(), rank));
  TypeAndShape input{static_cast<ElementType>(type), {}};
  for (size_t i = 0; i < rank; ++i) input.shape.push_back({sizes[i], names[i] ? names[i] : ""});
  return input;
}

void ShapeContext::set_output(size_t index, const TypeAndShape& output) const {
  Shape sizes;
  std::vector<const char*> names;
  for (const Dimension& dimension : output.shape) {
    sizes.push_back(dimension.size);
    names.push_back(dimension.name.c_str());
  }
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(CreateTensorTypeAndShapeInfo::call(api_, &info));
  OrtStatus* status = SetTensorElementType::call(api_, info, static_cast<int>(output.type));
  if (!status) status = SetDimensions::call(api_, info, static_cast<const int64_t*>(sizes.data()), sizes.size());
  if (!status) status = SetSymbolicDimensions::call(api_, info, names.data(), names.size());
  if (!status) {
    status = ShapeInferContextSetOutputTypeShape::call(api_, context_, index,
                                                       static_cast<const OrtTensorTypeAndShapeInfo*>(info));
  }
  ReleaseTensorTypeAndShapeInfo::call(api_, info);
  check(status);
}

}  // namespace qxc::ort
