#include "context.h"

namespace qxc::ort {

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

std::string KernelInfo::node_name() const {
  size_t size = 0;
  check(KernelInfoGetNodeName::call(api_, info_, static_cast<char*>(nullptr), &size));
  std::string name(size, '\0');
  check(KernelInfoGetNodeName::call(api_, info_, name.data(), &size));
  name.resize(size ? size - 1 : 0);
  return name;
}

int64_t KernelInfo::attribute_int(const char* name) const {
  int64_t value = 0;
  check(KernelInfoGetAttributeInt::call(api_, info_, name, &value));
  return value;
}

std::string KernelInfo::attribute_string(const char* name) const {
  size_t size = 0;
  check(KernelInfoGetAttributeString::call(api_, info_, name, static_cast<char*>(nullptr), &size));
  std::string value(size, '\0');
  check(KernelInfoGetAttributeString::call(api_, info_, name, value.data(), &size));
  value.resize(size ? size - 1 : 0);
  return value;
}

Tensor KernelContext::input(size_t index) const {
  const OrtValue* value = nullptr;
  check(KernelContextGetInput::call(api_, static_cast<const OrtKernelContext*>(context_), index, &value));
  if (!value) throw Error(kInvalidGraph, "input " + std::to_string(index) + " is missing");

  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(GetTensorTypeAndShape::call(api_, value, &info));
  int type = 0;
  size_t rank = 0;
  OrtStatus* status = GetTensorElementType::call(api_, static_cast<const OrtTensorTypeAndShapeInfo*>(info), &type);
  if (!status) status = GetDimensionsCount::call(api_, static_cast<const OrtTensorTypeAndShapeInfo*>(info), &rank);
  Shape shape(rank);
  if (!status)
    status = GetDimensions::call(api_, static_cast<const OrtTensorTypeAndShapeInfo*>(info), shape.data(), rank);
  ReleaseTensorTypeAndShapeInfo::call(api_, info);
  check(status);

  void* data = nullptr;  // the table has no reader for constants; nothing is written through it
  check(GetTensorMutableData::call(api_, const_cast<OrtValue*>(value), &data));
  return {static_cast<ElementType>(type), std::move(shape), data};
}

void* KernelContext::output(const Shape& shape) const {
  OrtValue* value = nullptr;
  check(KernelContextGetOutput::call(api_, context_, static_cast<size_t>(0), shape.data(), shape.size(), &value));
  void* data = nullptr;
  check(GetTensorMutableData::call(api_, value, &data));
  return data;
}

}  // namespace qxc::ort
