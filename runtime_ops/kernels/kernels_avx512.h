// The kernels for AVX-512 with VNNI and VBMI.
#pragma once

#include "kernels.h"

namespace qxc {

extern const Kernels kAvx512;

}  // namespace qxc
