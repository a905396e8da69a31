// Codes of one block and row, out of the layout's lines, one code at a time.
#pragma once

#include <cstdint>

namespace qxc {
namespace {

// The code at byte `lane` (4 * row + j) of `step`, of a block's lines [bits, 64].
template <int bits>
inline uint8_t code_at(const uint8_t* lines, int step, int lane) {
  const auto field = [lines, lane](int line, int shift, int width) {
    return (lines[line * 64 + lane] >> shift) & ((1 << width) - 1);
  };
  int code;
  if constexpr (bits == 2) {
    code = field(step / 4, 2 * (step % 4), 2);
  } else if constexpr (bits == 3) {
    if (step < 6) {
      code = field(step / 2, 3 * (step % 2), 3);
    } else if (step == 6) {
      code = field(0, 6, 2) | field(1, 6, 1) << 2;
    } else {
      code = field(1, 7, 1) | field(2, 6, 2) << 1;
    }
  } else if constexpr (bits == 8) {
    code = lines[step * 64 + lane];
  } else {
    code = field(step / 2, 4 * (step % 2), 4);
    if constexpr (bits == 5) code |= field(4, step, 1) << 4;
    if constexpr (bits == 6) code |= field(4 + step / 4, 2 * (step % 4), 2) << 4;
  }
  return static_cast<uint8_t>(code);
}

}  // namespace
}  // namespace qxc
