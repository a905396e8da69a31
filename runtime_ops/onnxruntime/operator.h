// What every operator is made of, whatever it computes: a line in a list, and a kernel.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "context.h"
#include "qxc/kernels.h"

namespace qxc::ort {

// What an input has to be.
struct ExpectedInput {
  size_t index;
  const char* name;
  ElementType type;
  std::vector<Shape> shapes;  // one of them
  // where the constant lies that was checked when the kernel was made, if the input is one
  const void* constant = nullptr;
  Shape constant_shape{};
};

// A node of a model: its attributes, inputs and outputs, and errors that name it. Models are not trusted.
class Node {
 public:
  explicit Node(const KernelInfo& info) : name_(info.node_name()) {}

  int64_t attribute_int(const KernelInfo& info, const char* name) const;
  float attribute_float(const KernelInfo& info, const char* name) const;
  std::string attribute_string(const KernelInfo& info, const char* name) const;

  // Checked inputs of a call, and of the kernel where they are constant.
  Tensor read(const KernelContext& context, const ExpectedInput& expected) const;
  void check_constant(const KernelInfo& info, ExpectedInput& expected) const;

  // Any input of a call, and memory for an output.
  Tensor input(const KernelContext& context, size_t index, const char* name) const;
  void* output(const KernelContext& context, size_t index, ElementType type, const Shape& shape) const;

  Error error(ErrorCode code, const std::string& problem) const;

 private:
  void check(const ExpectedInput& expected, const Tensor& tensor) const;

  std::string name_;
};

// Computes one node.
class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void compute(const KernelContext& context) const = 0;
};

struct Operator {
  std::string name;
  std::vector<ElementType> inputs, outputs;
  std::function<std::unique_ptr<Kernel>(const KernelInfo&)> make_kernel;
  // Sets types and shapes of the outputs that it knows. Of operators of one name the runtime asks the first alone, so
  // that a type that they differ in comes from the inputs.
  std::function<void(const ShapeContext&)> infer_shapes;
};

// A constant of this type, beside its operators' kernels, gives them to every session.
struct Registration {
  using Make = std::vector<Operator> (*)(const qxc_kernels&);
  explicit Registration(Make make) { all().push_back(make); }
  static std::vector<Make>& all();
};

}  // namespace qxc::ort
