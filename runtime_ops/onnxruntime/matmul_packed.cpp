#include "matmul_packed.h"

#include <algorithm>
#include <memory>
#include <new>

namespace qxc::ort {
namespace {

constexpr int64_t kSerialWork = 1 << 16;          // multiplications for which waking a thread costs more than it saves
constexpr int64_t kTilePair = 2 * QXC_TILE_ROWS;  // rows of W: a tile of gate and one of up
constexpr int64_t kTasks = 32;  // of equal size: more balance threads better, but 64 were 3 to 8 % slower

qxc_activation parse_activation(const WeightInputs& weight, const std::string& name) {
  if (name == "a8") return QXC_A8;
  if (name == "a16") return QXC_A16;
  if (name == "a32") return QXC_A32;
  throw weight.error(kInvalidGraph, "activation '" + printable(name) + "' is none of 'a32', 'a16' and 'a8'");
}

struct Free {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{QXC_ALIGNMENT}); }
};

}  // namespace

MatMulPacked::MatMulPacked(WeightFormat format, const qxc_kernels& kernels, const KernelInfo& info,
                           qxc_epilogue epilogue)
    : weight_inputs_(format, info, 1),
      bias_{weight_inputs_.next(), "bias", kFloat, {{1}, {weight_inputs_.rows()}}},
      activation_(parse_activation(weight_inputs_, weight_inputs_.attribute_string(info, "activation"))),
      epilogue_(epilogue),
      kernels_(kernels) {
  if (epilogue == QXC_SILU_GATE && weight_inputs_.rows() % kTilePair != 0) {
    throw weight_inputs_.error(kInvalidGraph, "N = " + std::to_string(weight_inputs_.rows()) + " is no multiple of " +
                                                  std::to_string(kTilePair) + ", as tiles of gate and up in turn have");
  }
  weight_inputs_.check_constant(info, bias_);
}

void MatMulPacked::compute(const KernelContext& context) const {
  const int64_t K = weight_inputs_.columns(), N = weight_inputs_.rows();
  Tensor a = weight_inputs_.input(context, 0, "A");
  const qxc_weight weight = weight_inputs_.read(context);
  Tensor bias = weight_inputs_.read(context, bias_);
  const bool is_half = a.type == kFloat16;
  if ((a.type != kFloat && !is_half) || a.shape.empty() || a.shape.back() != K) {
    throw weight_inputs_.error(kInvalidArgument, "input 'A' is " + to_string(a.type) + " " + to_string(a.shape) +
                                                     " instead of float32 or float16 [..., " + std::to_string(K) + "]");
  }
  a.align(is_half ? 2 : 4);
  bias.align(4);
  Shape shape = a.shape;
  shape.back() = epilogue_ == QXC_SILU_GATE ? N / 2 : N;
  void* y = weight_inputs_.output(context, a.type, shape);
  const int64_t M = element_count(a.shape.begin(), a.shape.end() - 1);
  if (M == 0) return;

  const int64_t bias_stride = bias.shape[0] == 1 ? 0 : 1;
  const qxc_element element = is_half ? QXC_FLOAT16 : QXC_FLOAT32;
  qxc_matmul product{&kernels_, weight, activation_,      element,     epilogue_, M,
                     a.data,    y,      bias.as<float>(), bias_stride, nullptr};
  size_t bytes = 0;
  if (qxc_matmul_check(&product, &bytes)) {
    throw weight_inputs_.error(kInvalidArgument, "input 'A' has shape " + to_string(a.shape) + ", which is too large");
  }
  const std::unique_ptr<void, Free> workspace(::operator new(bytes, std::align_val_t{QXC_ALIGNMENT}, std::nothrow));
  if (!workspace) {
    throw weight_inputs_.error(kFail, "input 'A' has shape " + to_string(a.shape) + ", whose workspace of " +
                                          std::to_string(bytes) + " bytes this machine lacks");
  }
  product.workspace = workspace.get();

  if (M * K < kSerialWork) {
    qxc_matmul_prepare(&product, 0, M);
  } else {
    context.parallel_for(M, [&](int64_t m) { qxc_matmul_prepare(&product, m, m + 1); });
  }
  const int64_t tiles = qxc_matmul_tiles(&product);
  if (M * K <= (kSerialWork - 1) / N) return qxc_matmul_compute(&product, 0, tiles);
  const int64_t tiles_per_task = 2 * ((tiles + 2 * kTasks - 1) / (2 * kTasks));  // even, as the epilogue needs it
  context.parallel_for((tiles + tiles_per_task - 1) / tiles_per_task, [&](int64_t task) {
    const int64_t first = task * tiles_per_task;
    qxc_matmul_compute(&product, first, std::min(first + tiles_per_task, tiles));
  });
}

}  // namespace qxc::ort
