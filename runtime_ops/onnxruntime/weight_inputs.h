// The attributes and inputs that describe a packed weight, the same for every operator.
#pragma once

#include <string>

#include "context.h"
#include "qxc/kernels.h"

namespace qxc::ort {

struct WeightFormat {
  qxc_code code;
  int bits;
};

// Checks the attributes when the kernel is made, and at every call that the inputs have exactly the sizes that the
// attributes promise: models are not trusted, and the kernels check nothing.
class WeightInputs {
 public:
  WeightInputs(WeightFormat format, const KernelInfo& info);

  // The weight in inputs `first`.. of a call.
  qxc_weight read(const KernelContext& context, size_t first) const;

  // How many inputs `read` takes.
  size_t count() const { return weight_.code == QXC_UINT || weight_.code == QXC_LUT ? 3 : 2; }

  int64_t rows() const { return weight_.rows; }
  int64_t columns() const { return weight_.columns; }
  Error error(ErrorCode code, const std::string& problem) const;

 private:
  Tensor expect(const KernelContext& context, size_t index, const char* name, ElementType type,
                const Shape& shape) const;

  std::string node_;
  qxc_weight weight_{};
};

}  // namespace qxc::ort
