// The attributes and inputs that describe a packed weight, the same for every operator.
#pragma once

#include <string>

#include "../kernels/kernels.h"
#include "context.h"

namespace qxc::ort {

struct WeightFormat {
  Code code;
  int bits;
};

// Checks the attributes when the kernel is made, and at every call that the inputs have exactly the sizes that the
// attributes promise: models are not trusted, and the kernels check nothing.
class WeightInputs {
 public:
  WeightInputs(WeightFormat format, const KernelInfo& info);

  // The weight in inputs `first`.. of a call.
  PackedWeight read(const KernelContext& context, size_t first) const;

  // How many inputs `read` takes.
  size_t count() const { return format_.code == Code::kInt ? 2 : 3; }

  int64_t rows() const { return N_; }
  int64_t columns() const { return K_; }
  int64_t group_size() const { return group_size_; }
  int64_t groups() const { return groups_; }
  int64_t tiles() const { return tiles_; }
  const WeightFormat& format() const { return format_; }
  Error error(ErrorCode code, const std::string& problem) const;

 private:
  Tensor expect(const KernelContext& context, size_t index, const char* name, ElementType type,
                const Shape& shape) const;

  WeightFormat format_;
  std::string node_;
  int64_t K_, N_, group_size_, groups_, tiles_, blocks_;
};

}  // namespace qxc::ort
