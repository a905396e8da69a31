// The operators MatMulInt*, MatMulUInt*, MatMulLut*: Y = A Wᵀ + bias.
#pragma once

#include "weight_inputs.h"

namespace qxc::ort {

class MatMulPacked {
 public:
  MatMulPacked(WeightFormat format, const Kernels& kernels, const KernelInfo& info);
  void compute(const KernelContext& context) const;

 private:
  WeightInputs weight_inputs_;
  Activation activation_;
  QuantizeRow quantize_;
  MatMulTiles matmul_;
};

}  // namespace qxc::ort
