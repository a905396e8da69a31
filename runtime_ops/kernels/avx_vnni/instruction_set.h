// AVX-VNNI is AVX2 with `vpdpbusd`: its kernels are AVX2's sources, which ask for that.
#pragma once

#include "avx2/instruction_set.h"
