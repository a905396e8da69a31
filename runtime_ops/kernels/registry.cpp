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

const qxc_kernels* qxc_kernels_for(const char* wanted) {
#define RETURN_IF_WANTED(instruction_set)                                                                \
  if ((!wanted || std::strcmp(wanted, #instruction_set) == 0) && qxc::instruction_set::is_supported()) { \
    return &qxc::instruction_set::kKernels;                                                              \
  }
  QXC_INSTRUCTION_SETS(RETURN_IF_WANTED)
  return nullptr;
}

const char* qxc_kernels_name(const qxc_kernels* kernels) { return kernels->name; }
