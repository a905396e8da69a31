#include "dispatch.h"

#include <cstring>

#include "context.h"

namespace qxc::ort {

const Kernels& select_kernels(const char* wanted) {
  struct Choice {
    const char* name;
    const Kernels* kernels;
  };
  const Choice choices[] = {
      {"avx512", avx512_kernels()}, {"avx2", avx2_kernels()}, {"portable", portable_kernels()}};  // best first
  for (const Choice& choice : choices) {
    if (wanted && std::strcmp(wanted, choice.name) != 0) continue;
    if (choice.kernels) return *choice.kernels;
    if (wanted) {
      throw Error(kInvalidArgument, std::string("QXC_ISA=") + wanted + ": this processor, or this build, lacks it");
    }
  }
  throw Error(kInvalidArgument, std::string("QXC_ISA=") + wanted + " is none of avx512, avx2, portable");
}

}  // namespace qxc::ort
