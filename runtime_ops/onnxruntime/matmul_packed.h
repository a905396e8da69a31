// The operators MatMulInt*, MatMulUInt*, MatMulLut*, MatMulMxFp4: Y = A Wᵀ + bias; and SwiGluInt* ..., which go on to
// silu(gate) * up.
#pragma once

#include "weight_inputs.h"

namespace qxc::ort {

class MatMulPacked {
 public:
  MatMulPacked(WeightFormat format, const qxc_kernels& kernels, const KernelInfo& info,
               qxc_epilogue epilogue = QXC_NO_EPILOGUE);
  void compute(const KernelContext& context) const;

 private:
  WeightInputs weight_inputs_;
  ExpectedInput bias_;
  qxc_activation activation_;
  const qxc_epilogue epilogue_;
  const qxc_kernels& kernels_;
};

class SwiGluPacked : public MatMulPacked {
 public:
  SwiGluPacked(WeightFormat format, const qxc_kernels& kernels, const KernelInfo& info)
      : MatMulPacked(format, kernels, info, QXC_SILU_GATE) {}
};

}  // namespace qxc::ort
