// The operators MatMulInt*, MatMulUInt*, MatMulLut*, MatMulMxFp4: Y = A Wᵀ + bias.
#pragma once

#include "weight_inputs.h"

namespace qxc::ort {

class MatMulPacked {
 public:
  MatMulPacked(WeightFormat format, const qxc_kernels& kernels, const KernelInfo& info);
  void compute(const KernelContext& context) const;

 private:
  WeightInputs weight_inputs_;
  qxc_activation activation_;
  const qxc_kernels& kernels_;
};

}  // namespace qxc::ort
