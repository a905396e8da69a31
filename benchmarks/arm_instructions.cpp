// One product with random weights, computed a number of times: what benchmarks/arm_instructions.py counts.
//
//     arm_instructions ISA CODE BITS PER_TENSOR ACTIVATION M N K REPEATS
#include <cstdlib>
#include <random>
#include <vector>

#include "qxc/kernels.h"

int main(int argc, char** argv) {
  if (argc != 12) return 2;
  const auto number = [argv](int i) { return std::atoll(argv[i]); };
  qxc_weight weight{};
  weight.code = static_cast<qxc_code>(number(2));
  weight.bits = static_cast<int32_t>(number(3));
  weight.codebook_per_tensor = static_cast<int32_t>(number(4));
  const int64_t M = number(6);
  weight.rows = number(7);
  weight.columns = number(8);
  weight.group_size = number(9);
  weight.scale = static_cast<qxc_scale>(number(10));
  qxc_weight_bytes bytes;
  if (qxc_weight_check(&weight, &bytes)) return 3;
  std::mt19937 random(0);
  const auto filled = [&random](size_t count) {
    std::vector<uint8_t> data(count);
    for (uint8_t& byte : data) byte = static_cast<uint8_t>(random());
    return data;
  };
  const auto packed = filled(bytes.packed), scales = filled(bytes.scales), row_scales = filled(bytes.row_scales),
             zero_points = filled(bytes.zero_points), codebook = filled(bytes.codebook);
  weight.packed = packed.data();
  weight.scales = scales.data();
  weight.row_scales = row_scales.data();
  weight.zero_points = zero_points.data();
  weight.codebook = codebook.data();
  std::vector<float> a(static_cast<size_t>(M * weight.columns)), y(static_cast<size_t>(M * weight.rows));
  for (float& element : a) element = static_cast<float>(random() % 255) - 127;
  qxc_matmul product{};
  product.kernels = qxc_kernels_for(argv[1]);
  product.weight = weight;
  product.activation = static_cast<qxc_activation>(number(5));
  product.rows = M;
  product.a = a.data();
  product.y = y.data();
  size_t workspace_bytes;
  if (qxc_matmul_check(&product, &workspace_bytes)) return 3;
  product.workspace = std::aligned_alloc(QXC_ALIGNMENT, workspace_bytes);
  qxc_matmul_prepare(&product, 0, M);
  for (int64_t i = 0; i < number(11); ++i) qxc_matmul_compute(&product, 0, qxc_matmul_tiles(&product));
}
