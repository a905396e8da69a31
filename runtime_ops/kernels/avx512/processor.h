// What the kernels ask of the processor.
#pragma once

#include <cstdint>

namespace qxc::avx512 {

// How far ahead it is best asked for lines that are read as fast as they come; 0 where it does better alone.
int64_t stream_prefetch_bytes();

}  // namespace qxc::avx512
