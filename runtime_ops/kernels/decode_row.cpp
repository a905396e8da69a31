// Weights as float32, a row at a time.
#include "decode_row.h"

namespace qxc {
namespace {

DecodeColumns columns_decoder(qxc_code code, int bits) {
  switch (code) {
    case QXC_FP: return decode_columns<QXC_FP, 4>;
    case QXC_E2M3: return decode_columns<QXC_E2M3, 6>;
    case QXC_E3M2: return decode_columns<QXC_E3M2, 6>;
    case QXC_E4M3: return decode_columns<QXC_E4M3, 8>;
    case QXC_E5M2: return decode_columns<QXC_E5M2, 8>;
    default: break;
  }
  if (code == QXC_LUT) {
    return bits == 2 ? decode_columns<QXC_LUT, 2> : bits == 3 ? decode_columns<QXC_LUT, 3> : decode_columns<QXC_LUT, 4>;
  }
  const bool symmetric = code == QXC_INT;
  switch (bits) {
    case 2: return symmetric ? decode_columns<QXC_INT, 2> : decode_columns<QXC_UINT, 2>;
    case 3: return symmetric ? decode_columns<QXC_INT, 3> : decode_columns<QXC_UINT, 3>;
    case 4: return symmetric ? decode_columns<QXC_INT, 4> : decode_columns<QXC_UINT, 4>;
    case 5: return symmetric ? decode_columns<QXC_INT, 5> : decode_columns<QXC_UINT, 5>;
    case 6: return symmetric ? decode_columns<QXC_INT, 6> : decode_columns<QXC_UINT, 6>;
    default: return symmetric ? decode_columns<QXC_INT, 8> : decode_columns<QXC_UINT, 8>;
  }
}

}  // namespace

void decode_row(const PackedWeight& weight, qxc_code code, int bits, int64_t row, int64_t first, int64_t last,
                float* values) {
  columns_decoder(code, bits)(weight, row, first, last, values);
}

}  // namespace qxc
