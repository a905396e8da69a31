// Hadamard: Y = X R, the last axis of X in blocks times a rotation.
#include <algorithm>
#include <memory>

#include "operator.h"

namespace qxc::ort {
namespace {

constexpr int64_t kNumbersPerTask = 1 << 14;  // a few microseconds: fewer are not worth a thread

class Hadamard : public Kernel {
 public:
  Hadamard(const qxc_kernels& kernels, const KernelInfo& info)
      : node_(info), block_size_(node_.attribute_int(info, "block_size")), kernels_(kernels) {
    if (qxc_rotate(&kernels, QXC_FLOAT32, 0, block_size_, block_size_, nullptr, nullptr)) {
      throw node_.error(kInvalidGraph, "block_size " + std::to_string(block_size_) + " is none of 8, 16, 32 and 64");
    }
  }

  void compute(const KernelContext& context) const override {
    Tensor x = node_.input(context, 0, "X");
    const bool is_half = x.type == kFloat16;
    if ((x.type != kFloat && !is_half) || x.shape.empty() || x.shape.back() % block_size_ != 0) {
      throw node_.error(kInvalidArgument, "input 'X' is " + to_string(x.type) + " " + to_string(x.shape) +
                                              " instead of float32 or float16, in blocks of " +
                                              std::to_string(block_size_));
    }
    x.align(is_half ? 2 : 4);
    char* y = static_cast<char*>(node_.output(context, 0, x.type, x.shape));
    // blocks do not know of rows: the tensor is one column of them
    const int64_t blocks = element_count(x.shape.begin(), x.shape.end()) / block_size_;
    const int64_t per_task = kNumbersPerTask / block_size_;
    const auto rotate = [&](int64_t task) {
      const int64_t first = task * per_task, bytes = first * block_size_ * (is_half ? 2 : 4);
      qxc_rotate(&kernels_, is_half ? QXC_FLOAT16 : QXC_FLOAT32, std::min(per_task, blocks - first), block_size_,
                 block_size_, static_cast<const char*>(x.data) + bytes, y + bytes);
    };
    if (blocks <= per_task) {
      if (blocks) rotate(0);
    } else {
      context.parallel_for((blocks + per_task - 1) / per_task, rotate);
    }
  }

 private:
  Node node_;
  const int64_t block_size_;
  const qxc_kernels& kernels_;
};

const Registration registration([](const qxc_kernels& kernels) {
  std::vector<Operator> operators;
  for (const ElementType element : {kFloat, kFloat16}) {
    operators.push_back({"Hadamard",
                         {element},
                         {element},
                         [&kernels](const KernelInfo& info) { return std::make_unique<Hadamard>(kernels, info); },
                         [](const ShapeContext& context) {
                           if (const auto x = context.input(0)) context.set_output(0, *x);
                         }});
  }
  return operators;
});

}  // namespace
}  // namespace qxc::ort
