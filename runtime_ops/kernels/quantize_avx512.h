// Rows of A to integers, with AVX-512.
#pragma once

#include "kernels.h"

namespace qxc {

bool quantize_a8_avx512(const float* a, int64_t columns, int64_t row, const QuantizedRows& out);
bool quantize_a16_avx512(const float* a, int64_t columns, int64_t row, const QuantizedRows& out);
void widen_avx512(const uint16_t* halves, int64_t count, float* values);

}  // namespace qxc
