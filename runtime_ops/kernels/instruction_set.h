// One instruction set's kernels, put together.
#pragma once

#include "quantize_rows.h"
#include "silu_gate.h"

namespace qxc {
namespace {

using MatMulOfWidth = MatMulFamily (*)(Code code);

template <MatMulOfWidth w2, MatMulOfWidth w3, MatMulOfWidth w4, MatMulOfWidth w5, MatMulOfWidth w6, MatMulOfWidth w8>
MatMulFamily matmul_of_bits(Code code, int bits) {
  switch (bits) {
    case 2: return w2(code);
    case 3: return w3(code);
    case 4: return w4(code);
    case 5: return w5(code);
    case 6: return w6(code);
    default: return w8(code);
  }
}

// `Vector`: see quantize_rows.h; `widths`: products with weights of 2, 3, 4, 5, 6 and 8 bits.
template <class Vector, MatMulOfWidth... widths>
constexpr Kernels kernels_of(const char* name) {
  return {name, quantize_a8<Vector>, quantize_a16<Vector>, matmul_of_bits<widths...>, Vector::widen, silu_gate};
}

}  // namespace
}  // namespace qxc
