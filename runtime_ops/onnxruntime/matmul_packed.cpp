// MatMul: Y = A Wᵀ + bias with a packed W; SwiGlu, which goes on to silu(gate) * up.
#include <algorithm>
#include <memory>
#include <new>

#include "weight_inputs.h"

namespace qxc::ort {
namespace {

constexpr int64_t kSerialWork = 1 << 16;          // multiplications for which waking a thread costs more than it saves
constexpr int64_t kTilePair = 2 * QXC_TILE_ROWS;  // rows of W: a tile of gate and one of up
constexpr int64_t kTasks = 32;  // of equal size: more balance threads better, but 64 were 3 to 8 % slower

qxc_activation parse_activation(const Node& node, const std::string& name) {
  if (name == "a8") return QXC_A8;
  if (name == "a16") return QXC_A16;
  if (name == "a32") return QXC_A32;
  throw node.error(kInvalidGraph, "activation '" + printable(name) + "' is none of 'a32', 'a16' and 'a8'");
}

struct Free {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{QXC_ALIGNMENT}); }
};

class MatMulPacked : public Kernel {
 public:
  MatMulPacked(const WeightType& type, qxc_epilogue epilogue, const qxc_kernels& kernels, const KernelInfo& info)
      : node_(info),
        weight_inputs_(type, node_, info, 1),
        bias_{weight_inputs_.next(), "bias", kFloat, {{1}, {weight_inputs_.rows()}}},
        activation_(parse_activation(node_, node_.attribute_string(info, "activation"))),
        epilogue_(epilogue),
        kernels_(kernels) {
    if (epilogue == QXC_SILU_GATE && weight_inputs_.rows() % kTilePair != 0) {
      throw node_.error(kInvalidGraph, "N = " + std::to_string(weight_inputs_.rows()) + " is no multiple of " +
                                           std::to_string(kTilePair) + ", as tiles of gate and up in turn have");
    }
    node_.check_constant(info, bias_);
  }

  void compute(const KernelContext& context) const override {
    const int64_t K = weight_inputs_.columns(), N = weight_inputs_.rows();
    Tensor a = node_.input(context, 0, "A");
    const qxc_weight weight = weight_inputs_.read(node_, context);
    Tensor bias = node_.read(context, bias_);
    const bool is_half = a.type == kFloat16;
    if ((a.type != kFloat && !is_half) || a.shape.empty() || a.shape.back() != K) {
      throw node_.error(kInvalidArgument, "input 'A' is " + to_string(a.type) + " " + to_string(a.shape) +
                                              " instead of float32 or float16 [..., " + std::to_string(K) + "]");
    }
    a.align(is_half ? 2 : 4);
    bias.align(4);
    Shape shape = a.shape;
    shape.back() = epilogue_ == QXC_SILU_GATE ? N / 2 : N;
    void* y = node_.output(context, 0, a.type, shape);
    const int64_t M = element_count(a.shape.begin(), a.shape.end() - 1);
    if (M == 0) return;

    const int64_t bias_stride = bias.shape[0] == 1 ? 0 : 1;
    const qxc_element element = is_half ? QXC_FLOAT16 : QXC_FLOAT32;
    qxc_matmul product{&kernels_, weight, activation_,      element,     epilogue_, M,
                       a.data,    y,      bias.as<float>(), bias_stride, nullptr};
    size_t bytes = 0;
    if (qxc_matmul_check(&product, &bytes)) {
      throw node_.error(kInvalidArgument, "input 'A' has shape " + to_string(a.shape) + ", which is too large");
    }
    const std::unique_ptr<void, Free> workspace(::operator new(bytes, std::align_val_t{QXC_ALIGNMENT}, std::nothrow));
    if (!workspace) {
      throw node_.error(kFail, "input 'A' has shape " + to_string(a.shape) + ", whose workspace of " +
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

 private:
  Node node_;
  WeightInputs weight_inputs_;
  ExpectedInput bias_;
  const qxc_activation activation_;
  const qxc_epilogue epilogue_;
  const qxc_kernels& kernels_;
};

const Registration registration([](const qxc_kernels& kernels) {
  std::vector<Operator> operators;
  const auto add = [&](const char* name, qxc_epilogue epilogue, const WeightType& type, ElementType element) {
    std::vector<ElementType> inputs{element};
    inputs.insert(inputs.end(), type.tensors.begin(), type.tensors.end());
    inputs.push_back(kFloat);
    operators.push_back({name + type.suffix,
                         std::move(inputs),
                         {element},
                         [&type, &kernels, epilogue](const KernelInfo& info) {
                           return std::make_unique<MatMulPacked>(type, epilogue, kernels, info);
                         },
                         [epilogue](const ShapeContext& context) {
                           auto y = context.input(0);
                           const auto N = context.attribute_int("N");
                           if (!y || !N) return;
                           y->shape.back() = {epilogue == QXC_SILU_GATE ? *N / 2 : *N};
                           context.set_output(0, *y);
                         }});
  };
  for (const WeightType& type : weight_types()) {
    for (const ElementType element : {kFloat, kFloat16}) {
      add("MatMul", QXC_NO_EPILOGUE, type, element);
      add("SwiGlu", QXC_SILU_GATE, type, element);
    }
  }
  return operators;
});

}  // namespace
}  // namespace qxc::ort
