// Weights as float32, in portable C++, out of any format.
#pragma once

#include "kernels.h"
#include "scalar.h"
#include "unpack.h"

namespace qxc {
namespace {

// The numbers of one row's codes, before scaling.
template <qxc_code code, int bits>
struct RowDecoder {
  const PackedWeight& weight;
  int64_t tile;
  int lane;

  float value(int64_t block, int step, int j, int64_t group) const {
    const uint8_t* lines = weight.packed + (tile * weight.blocks + block) * bits * kLineBytes;
    const int stored = code_at<bits>(lines, step, 4 * lane + j);
    if constexpr (code == QXC_INT) {
      return static_cast<float>(stored - (1 << (bits - 1)));
    } else if constexpr (code == QXC_UINT) {
      return static_cast<float>(stored - weight.zero_points[(tile * weight.groups + group) * kTileRows + lane]);
    } else if constexpr (code == QXC_FP) {
      return 0.5f * static_cast<float>(kTwiceE2M1[stored]);
    } else if constexpr (code == QXC_E2M3) {
      return small_float<E2M3>(stored);
    } else if constexpr (code == QXC_E3M2) {
      return small_float<E3M2>(stored);
    } else if constexpr (code == QXC_E4M3) {
      return small_float<E4M3>(stored);
    } else if constexpr (code == QXC_E5M2) {
      return small_float<E5M2>(stored);
    } else {
      const int64_t table = weight.codebook_per_tensor ? 0 : tile * kTileRows + lane;
      return static_cast<float>(weight.codebook[(table << bits) + stored]);
    }
  }

  float scale(int64_t group) const { return scale_at(weight, tile, group, lane); }
};

template <qxc_code code, int bits>
void decode_columns(const PackedWeight& weight, int64_t row, int64_t first, int64_t last, float* values) {
  const RowDecoder<code, bits> decoder{weight, row / kTileRows, static_cast<int>(row % kTileRows)};
  int64_t group = -1;
  float scale = 0;
  for (int64_t k = first; k < last; ++k) {
    if (k / weight.group_size != group) {
      group = k / weight.group_size;
      scale = decoder.scale(group);
    }
    const int within = static_cast<int>(k % kBlockColumns);
    values[k - first] = scale * decoder.value(k / kBlockColumns, within / 4, within % 4, group);
  }
}

using DecodeColumns = void (*)(const PackedWeight&, int64_t, int64_t, int64_t, float*);

}  // namespace
}  // namespace qxc
