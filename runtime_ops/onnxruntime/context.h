// What the operators need of ONNX Runtime, as C++: tensors, attributes, errors, threads.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_abi.h"

namespace qxc::ort {

// Carries an error to the border of the library, where it becomes an OrtStatus.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code(code) {}
  const ErrorCode code;
};

// Carries an OrtStatus through C++ frames, unchanged.
struct StatusError {
  OrtStatus* status;
};

inline void check(OrtStatus* status) {
  if (status) throw StatusError{status};
}

// Runs `body`; whatever it throws becomes a status. No exception may cross the C border.
template <class Body>
OrtStatus* as_status(Table api, Body body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const StatusError& error) {
    return error.status;
  } catch (const Error& error) {
    return CreateStatus::call(api, static_cast<int>(error.code), error.what());
  } catch (const std::bad_alloc&) {
    return CreateStatus::call(api, static_cast<int>(kFail), "the qxc operators lack memory");
  } catch (const std::exception& error) {
    return CreateStatus::call(api, static_cast<int>(kFail), error.what());
  }
}

using Shape = std::vector<int64_t>;

std::string to_string(const Shape& shape);
std::string to_string(ElementType type);

// A model's text, made fit for an error message: it may be long, or no text at all.
std::string printable(const std::string& text);

// How many elements a tensor has, of dimensions [first, last) of its shape: 0 where one of them is 0.
int64_t element_count(Shape::const_iterator first, Shape::const_iterator last);

struct Tensor {
  ElementType type;
  Shape shape;
  const void* data;
  std::unique_ptr<char[]> copy = nullptr;  // where `data` points to one

  // Data from a file may start at any byte of it: copies them where numbers of `size` bytes cannot be read in place.
  void align(size_t size);

  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

// A kernel being made: its node's name, attributes and constant inputs.
class KernelInfo {
 public:
  KernelInfo(Table api, const OrtKernelInfo* info) : api_(api), info_(info) {}

  std::string node_name() const;
  // Nothing where the node has no such attribute, or one of another type.
  std::optional<int64_t> attribute_int(const char* name) const;
  std::optional<float> attribute_float(const char* name) const;
  std::optional<std::string> attribute_string(const char* name) const;

  // Nothing where the input is known only when the model runs.
  std::optional<Tensor> constant(size_t index) const;

 private:
  Table api_;
  const OrtKernelInfo* info_;
};

// One call of a kernel: inputs, outputs, threads.
class KernelContext {
 public:
  KernelContext(Table api, OrtKernelContext* context) : api_(api), context_(context) {}

  std::optional<Tensor> input(size_t index) const;  // nothing where the node leaves it out

  const void* data(size_t index) const;  // of an input, nothing else asked

  // Memory for an output; null where the model does not ask for it, or has declared another type.
  void* output(size_t index, ElementType type, const Shape& shape) const;

  // Calls body(i) for i in 0..count-1 on the session's threads. `body` must not throw.
  template <class Body>
  void parallel_for(int64_t count, const Body& body) const {
    const auto call = [](void* data, size_t i) { (*static_cast<const Body*>(data))(static_cast<int64_t>(i)); };
    const size_t batches_of_runtimes_choice = 0;
    check(KernelContextParallelFor::call(
        api_, static_cast<const OrtKernelContext*>(context_), static_cast<void (*)(void*, size_t)>(call),
        static_cast<size_t>(count), batches_of_runtimes_choice, const_cast<void*>(static_cast<const void*>(&body))));
  }

 private:
  Table api_;
  OrtKernelContext* context_;
};

// A size that is known before the model runs, or has a name, or neither.
struct Dimension {
  int64_t size = -1;
  std::string name{};
};

struct TypeAndShape {
  ElementType type;
  std::vector<Dimension> shape;
};

// A node whose outputs' shapes are wanted before the model runs.
class ShapeContext {
 public:
  ShapeContext(Table api, const OrtShapeInferContext* context) : api_(api), context_(context) {}

  // Nothing where the node has no such attribute, or one of another type.
  std::optional<int64_t> attribute_int(const char* name) const;

  // Nothing where the shape is not known, nor that of a scalar, which the runtime does not tell apart.
  std::optional<TypeAndShape> input(size_t index) const;

  void set_output(size_t index, const TypeAndShape& output) const;

 private:
  Table api_;
  const OrtShapeInferContext* context_;
};

}  // namespace qxc::ort
