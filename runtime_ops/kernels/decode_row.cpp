// Weights as float32, a row at a time.
#include "decode_row.h"

namespace qxc {
namespace {

DecodeColumns columns_decoder(Code code, int bits) {
  if (code == Code::kFp) return decode_columns<Code::kFp, 4>;
  if (code == Code::kLut) {
    return bits == 2   ? decode_columns<Code::kLut, 2>
           : bits == 3 ? decode_columns<Code::kLut, 3>
                       : decode_columns<Code::kLut, 4>;
  }
  const bool symmetric = code == Code::kInt;
  switch (bits) {
    case 2: return symmetric ? decode_columns<Code::kInt, 2> : decode_columns<Code::kUInt, 2>;
    case 3: return symmetric ? decode_columns<Code::kInt, 3> : decode_columns<Code::kUInt, 3>;
    case 4: return symmetric ? decode_columns<Code::kInt, 4> : decode_columns<Code::kUInt, 4>;
    case 5: return symmetric ? decode_columns<Code::kInt, 5> : decode_columns<Code::kUInt, 5>;
    case 6: return symmetric ? decode_columns<Code::kInt, 6> : decode_columns<Code::kUInt, 6>;
    default: return symmetric ? decode_columns<Code::kInt, 8> : decode_columns<Code::kUInt, 8>;
  }
}

}  // namespace

void decode_row(const PackedWeight& weight, Code code, int bits, int64_t row, int64_t first, int64_t last,
                float* values) {
  columns_decoder(code, bits)(weight, row, first, last, values);
}

}  // namespace qxc
