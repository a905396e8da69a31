// The operators GatherInt*, GatherUInt*, GatherLut*: rows of the decoded matrix.
#pragma once

#include "weight_inputs.h"

namespace qxc::ort {

class GatherPacked {
 public:
  GatherPacked(WeightFormat format, const qxc_kernels& kernels, const KernelInfo& info);
  void compute(const KernelContext& context) const;

 private:
  WeightInputs weight_inputs_;
};

}  // namespace qxc::ort
