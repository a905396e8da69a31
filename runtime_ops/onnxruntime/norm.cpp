// RMSNorm and LayerNorm over the last axis, of a tensor or of the sum of two.
#include <algorithm>
#include <memory>

#include "operator.h"

namespace qxc::ort {
namespace {

constexpr int64_t kNumbersPerTask = 1 << 14;  // a few microseconds: fewer are not worth a thread

struct NormType {
  bool skip, centered;

  std::string name() const { return std::string(skip ? "Skip" : "") + (centered ? "LayerNorm" : "RMSNorm"); }
  size_t gain() const { return skip ? 2 : 1; }
  size_t inputs() const { return gain() + (centered ? 2 : 1); }
  size_t outputs() const { return skip ? 2 : 1; }
};

class Norm : public Kernel {
 public:
  Norm(const NormType& type, const qxc_kernels& kernels, const KernelInfo& info)
      : node_(info), type_(type), epsilon_(node_.attribute_float(info, "epsilon")), kernels_(kernels) {
    if (!(epsilon_ >= 0)) throw node_.error(kInvalidGraph, "epsilon is neither positive nor 0");
    gain_.index = type_.gain();
    bias_.index = type_.gain() + 1;
    for (ExpectedInput* input : {&gain_, &bias_}) {
      const auto constant = input->index < type_.inputs() ? info.constant(input->index) : std::nullopt;
      if (!constant) continue;
      input->shapes = {{element_count(constant->shape.begin(), constant->shape.end())}};
      node_.check_constant(info, *input);
    }
  }

  void compute(const KernelContext& context) const override {
    Tensor x = node_.input(context, 0, "X"), skip{}, bias{};
    const bool is_half = x.type == kFloat16;
    if ((x.type != kFloat && !is_half) || x.shape.empty() || x.shape.back() < 1) {
      throw node_.error(kInvalidArgument, "input 'X' is " + to_string(x.type) + " " + to_string(x.shape) +
                                              " instead of float32 or float16, with a last axis");
    }
    const int64_t N = x.shape.back();
    Tensor gain = read_row(context, gain_, N);
    x.align(is_half ? 2 : 4);
    qxc_norm norm{};
    norm.kernels = &kernels_;
    norm.element = is_half ? QXC_FLOAT16 : QXC_FLOAT32;
    norm.is_centered = type_.centered;
    norm.epsilon = epsilon_;
    norm.rows = element_count(x.shape.begin(), x.shape.end() - 1);
    norm.columns = N;
    norm.x = x.data;
    norm.gain = gain.as<float>();
    if (type_.centered) {
      bias = read_row(context, bias_, N);
      norm.bias = bias.as<float>();
    }
    norm.y = node_.output(context, 0, x.type, x.shape);
    if (type_.skip) {
      skip = node_.read(context, {1, "skip", x.type, {x.shape}});
      skip.align(is_half ? 2 : 4);
      norm.skip = skip.data;
      norm.sum = node_.output(context, 1, x.type, x.shape);
    }
    if (!norm.rows) return;
    if (qxc_norm_check(&norm)) {
      throw node_.error(kInvalidArgument, "input 'X' has shape " + to_string(x.shape) + ", which is too large");
    }
    const int64_t per_task = std::max<int64_t>(1, kNumbersPerTask / N);
    if (norm.rows <= per_task) return qxc_norm_compute(&norm, 0, norm.rows);
    context.parallel_for((norm.rows + per_task - 1) / per_task, [&](int64_t task) {
      qxc_norm_compute(&norm, task * per_task, std::min((task + 1) * per_task, norm.rows));
    });
  }

 private:
  // Gain or bias, [N].
  Tensor read_row(const KernelContext& context, const ExpectedInput& input, int64_t N) const {
    const bool is_checked = input.constant && input.constant_shape[0] == N;
    Tensor row = node_.read(context, is_checked ? input : ExpectedInput{input.index, input.name, kFloat, {{N}}});
    row.align(4);
    return row;
  }

  Node node_;
  const NormType type_;
  const float epsilon_;
  ExpectedInput gain_{0, "gain", kFloat, {}}, bias_{0, "bias", kFloat, {}};
  const qxc_kernels& kernels_;
};

const Registration registration([](const qxc_kernels& kernels) {
  std::vector<Operator> operators;
  for (const NormType type : {NormType{false, false}, {false, true}, {true, false}, {true, true}}) {
    for (const ElementType element : {kFloat, kFloat16}) {
      std::vector<ElementType> inputs(type.inputs(), kFloat);
      std::fill_n(inputs.begin(), type.gain(), element);
      operators.push_back(
          {type.name(), inputs, std::vector<ElementType>(type.outputs(), element),
           [type, &kernels](const KernelInfo& info) { return std::make_unique<Norm>(type, kernels, info); },
           [type](const ShapeContext& context) {
             if (const auto x = context.input(0)) {
               for (size_t i = 0; i < type.outputs(); ++i) context.set_output(i, *x);
             }
           }});
    }
  }
  return operators;
});

}  // namespace
}  // namespace qxc::ort
