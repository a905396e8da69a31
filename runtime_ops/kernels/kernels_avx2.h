// The kernels for AVX2 with FMA and F16C.
#pragma once

#include "kernels.h"

namespace qxc {

extern const Kernels kAvx2;

}  // namespace qxc
