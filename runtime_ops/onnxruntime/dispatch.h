// Which kernels run: the best that the processor has, or those that QXC_ISA asks for.
#pragma once

#include "../kernels/kernels.h"

namespace qxc::ort {

// Throws Error where `wanted` (portable, avx2, avx512; null for the best) is unknown, or the processor lacks it.
const Kernels& select_kernels(const char* wanted);

}  // namespace qxc::ort
