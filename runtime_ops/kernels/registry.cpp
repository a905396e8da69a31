// Which kernels there are: those of the folders beside this file, and of those that QXC_EXTRA_INSTRUCTION_SETS names.
#include <cstring>

#include "instruction_sets.h"  // made by instruction_sets.cmake: QXC_INSTRUCTION_SETS(X) is X(avx512) X(avx_vnni) ...
#include "kernels.h"

#define DECLARE(instruction_set)   \
  namespace qxc::instruction_set { \
  bool is_supported();             \
  extern const Kernels kKernels;   \
  }
QXC_INSTRUCTION_SETS(DECLARE)

const qxc_kernels* qxc_kernels_at(int32_t place) {
#define RETURN_IF_PLACE(instruction_set)                      \
  if (qxc::instruction_set::is_supported() && place-- == 0) { \
    return &qxc::instruction_set::kKernels;                   \
  }
  QXC_INSTRUCTION_SETS(RETURN_IF_PLACE)
  return nullptr;
}

const qxc_kernels* qxc_kernels_for(const char* instruction_set) {
  const qxc_kernels* kernels = nullptr;
  for (int32_t place = 0; (kernels = qxc_kernels_at(place)); ++place) {
    if (!instruction_set || std::strcmp(instruction_set, kernels->name) == 0) break;
  }
  return kernels;
}

const char* qxc_kernels_name(const qxc_kernels* kernels) { return kernels->name; }
