// Gather: rows of the matrix that a packed weight stands for.
#include "weight_inputs.h"

namespace qxc::ort {
namespace {

class GatherPacked : public Kernel {
 public:
  GatherPacked(const WeightType& type, const KernelInfo& info) : node_(info), weight_inputs_(type, node_, info, 1) {}

  void compute(const KernelContext& context) const override {
    const int64_t K = weight_inputs_.columns(), N = weight_inputs_.rows();
    Tensor indices = node_.input(context, 0, "indices");
    const qxc_weight weight = weight_inputs_.read(node_, context);
    if (indices.type != kInt32 && indices.type != kInt64) {
      throw node_.error(kInvalidArgument,
                        "input 'indices' is " + to_string(indices.type) + " instead of int32 or int64");
    }
    indices.align(indices.type == kInt64 ? 8 : 4);
    const int64_t count = element_count(indices.shape.begin(), indices.shape.end());
    std::vector<int64_t> rows(static_cast<size_t>(count));
    for (size_t i = 0; i < rows.size(); ++i) {
      const int64_t index = indices.type == kInt64 ? indices.as<int64_t>()[i] : indices.as<int32_t>()[i];
      if (index < -N || index >= N) {
        throw node_.error(kInvalidArgument,
                          "index " + std::to_string(index) + " is outside " + std::to_string(N) + " rows");
      }
      rows[i] = index < 0 ? index + N : index;
    }
    Shape shape = indices.shape;
    shape.push_back(K);
    float* y = static_cast<float*>(node_.output(context, 0, kFloat, shape));
    if (count == 0) return;
    context.parallel_for(
        count, [&](int64_t i) { qxc_weight_decode_row(&weight, rows[static_cast<size_t>(i)], 0, K, y + i * K); });
  }

 private:
  Node node_;
  WeightInputs weight_inputs_;
};

const Registration registration([](const qxc_kernels&) {
  std::vector<Operator> operators;
  for (const WeightType& type : weight_types()) {
    std::vector<ElementType> inputs{kAny};
    inputs.insert(inputs.end(), type.tensors.begin(), type.tensors.end());
    operators.push_back({"Gather" + type.suffix,
                         std::move(inputs),
                         {kFloat},
                         [&type](const KernelInfo& info) { return std::make_unique<GatherPacked>(type, info); },
                         [](const ShapeContext& context) {
                           auto y = context.input(0);
                           const auto K = context.attribute_int("K");
                           if (!y || !K) return;
                           y->type = kFloat;
                           y->shape.push_back({*K});
                           context.set_output(0, *y);
                         }});
  }
  return operators;
});

}  // namespace
}  // namespace qxc::ort
