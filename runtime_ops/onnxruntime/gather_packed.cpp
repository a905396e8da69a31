#include "gather_packed.h"

namespace qxc::ort {

GatherPacked::GatherPacked(WeightFormat format, const qxc_kernels&, const KernelInfo& info)
    : weight_inputs_(format, info, 1) {}

void GatherPacked::compute(const KernelContext& context) const {
  const int64_t K = weight_inputs_.columns(), N = weight_inputs_.rows();
  Tensor indices = weight_inputs_.input(context, 0, "indices");
  const qxc_weight weight = weight_inputs_.read(context);
  if (indices.type != kInt32 && indices.type != kInt64) {
    throw weight_inputs_.error(kInvalidArgument,
                               "input 'indices' is " + to_string(indices.type) + " instead of int32 or int64");
  }
  indices.align(indices.type == kInt64 ? 8 : 4);
  const int64_t count = element_count(indices.shape.begin(), indices.shape.end());
  std::vector<int64_t> rows(static_cast<size_t>(count));
  for (size_t i = 0; i < rows.size(); ++i) {
    const int64_t index = indices.type == kInt64 ? indices.as<int64_t>()[i] : indices.as<int32_t>()[i];
    if (index < -N || index >= N) {
      throw weight_inputs_.error(kInvalidArgument,
                                 "index " + std::to_string(index) + " is outside " + std::to_string(N) + " rows");
    }
    rows[i] = index < 0 ? index + N : index;
  }
  Shape shape = indices.shape;
  shape.push_back(K);
  float* y = static_cast<float*>(weight_inputs_.output(context, kFloat, shape));
  if (count == 0) return;
  context.parallel_for(
      count, [&](int64_t i) { qxc_weight_decode_row(&weight, rows[static_cast<size_t>(i)], 0, K, y + i * K); });
}

}  // namespace qxc::ort
