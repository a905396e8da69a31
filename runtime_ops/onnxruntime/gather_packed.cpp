#include "gather_packed.h"

namespace qxc::ort {

GatherPacked::GatherPacked(WeightFormat format, const qxc_kernels&, const KernelInfo& info)
    : weight_inputs_(format, info) {}

void GatherPacked::compute(const KernelContext& context) const {
  const int64_t K = weight_inputs_.columns(), N = weight_inputs_.rows();
  const Tensor indices = context.input(0);
  const qxc_weight weight = weight_inputs_.read(context, 1);
  if (indices.type != kInt32 && indices.type != kInt64) {
    throw weight_inputs_.error(kInvalidArgument, "input 'indices' is neither int32 nor int64");
  }
  int64_t count = 1;
  for (const int64_t size : indices.shape) count *= size;

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
  float* y = static_cast<float*>(context.output(shape));
  if (count == 0) return;
  context.parallel_for(
      count, [&](int64_t i) { qxc_weight_decode_row(&weight, rows[static_cast<size_t>(i)], 0, K, y + i * K); });
}

}  // namespace qxc::ort
