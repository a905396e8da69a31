// Weights as float32, a row at a time.
#include "decode_portable.h"

namespace qxc {
void decode_row(const PackedWeight& weight, Code code, int bits, int64_t row, int64_t first, int64_t last,
                float* values) {
  columns_decoder(code, bits)(weight, row, first, last, values);
}

}  // namespace qxc
