// The attributes and inputs that describe a packed weight, the same for every operator that reads one.
#pragma once

#include <string>
#include <vector>

#include "operator.h"

namespace qxc::ort {

// What an operator's name says of its weight.
struct WeightType {
  qxc_code code;
  int bits;
  qxc_scale scale;
  std::string suffix;                // of the operators' names
  std::vector<ElementType> tensors;  // in the order of the inputs
};

const std::vector<WeightType>& weight_types();

// Checks the attributes and the inputs that are constant when the kernel is made, and at every call that the inputs
// have exactly the sizes that the attributes promise: the kernels check nothing.
class WeightInputs {
 public:
  // The weight is in the inputs `first`.. of the node.
  WeightInputs(const WeightType& type, const Node& node, const KernelInfo& info, size_t first);

  // The weight of a call.
  qxc_weight read(const Node& node, const KernelContext& context) const;

  // The node's input after those of the weight.
  size_t next() const { return inputs_.back().index + 1; }

  int64_t rows() const { return weight_.rows; }
  int64_t columns() const { return weight_.columns; }

 private:
  qxc_weight weight_{};
  std::vector<ExpectedInput> inputs_;
};

}  // namespace qxc::ort
