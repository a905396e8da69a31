// The kernels for AVX-VNNI, besides what those for AVX2 need.
#pragma once

#include "kernels.h"

namespace qxc {

extern const Kernels kAvxVnni;

}  // namespace qxc
