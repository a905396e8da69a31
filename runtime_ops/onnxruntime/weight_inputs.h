// The attributes and inputs that describe a packed weight, the same for every operator.
#pragma once

#include <string>
#include <vector>

#include "context.h"
#include "qxc/kernels.h"

namespace qxc::ort {

struct WeightFormat {
  qxc_code code;
  int bits;
};

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

// Checks the attributes and the inputs that are constant when the kernel is made, and at every call that the inputs
// have exactly the sizes that the attributes promise: models are not trusted, and the kernels check nothing.
class WeightInputs {
 public:
  // The weight is in the inputs `first`.. of the node.
  WeightInputs(WeightFormat format, const KernelInfo& info, size_t first);

  // The weight of a call.
  qxc_weight read(const KernelContext& context) const;

  // The node's input after those of the weight.
  size_t next() const { return inputs_.back().index + 1; }

  // Checked inputs of a call, and of the kernel where they are constant.
  Tensor read(const KernelContext& context, const ExpectedInput& expected) const;
  void check_constant(const KernelInfo& info, ExpectedInput& expected) const;

  // Any input of a call, and memory for its output.
  Tensor input(const KernelContext& context, size_t index, const char* name) const;
  void* output(const KernelContext& context, ElementType type, const Shape& shape) const;

  std::string attribute_string(const KernelInfo& info, const char* name) const;

  int64_t rows() const { return weight_.rows; }
  int64_t columns() const { return weight_.columns; }
  Error error(ErrorCode code, const std::string& problem) const;

 private:
  int64_t attribute_int(const KernelInfo& info, const char* name) const;
  void check(const ExpectedInput& expected, const Tensor& tensor) const;

  std::string node_;
  qxc_weight weight_{};
  std::vector<ExpectedInput> inputs_;  // packed, scales, and zero_points or codebook where the format has them
};

}  // namespace qxc::ort
