#include "weight_inputs.h"

namespace qxc::ort {
namespace {

constexpr char kLayout[] = "tile16.v1";
constexpr int64_t kLargestDimension = int64_t{1} << 40;  // products of two stay far from overflow

bool is_group_size(int64_t size) { return size == 16 || size == 32 || size == 64 || size == 128 || size == 256; }

}  // namespace

WeightInputs::WeightInputs(WeightFormat format, const KernelInfo& info) : format_(format), node_(info.node_name()) {
  K_ = info.attribute_int("K");
  N_ = info.attribute_int("N");
  group_size_ = info.attribute_int("group_size");
  const std::string layout = info.attribute_string("layout");
  if (layout != kLayout) {
    throw error(kInvalidGraph, "layout '" + layout + "' is not known to this library, which reads '" + kLayout +
                                   "': a newer qxcompiler may");
  }
  if (K_ < 1 || N_ < 1 || K_ > kLargestDimension || N_ > kLargestDimension) {
    throw error(kInvalidGraph, "K = " + std::to_string(K_) + ", N = " + std::to_string(N_) + " is no matrix");
  }
  if (!is_group_size(group_size_) && group_size_ != K_) {
    throw error(kInvalidGraph, "group_size " + std::to_string(group_size_) + " is neither 16, 32, 64, 128, 256 nor K");
  }
  groups_ = (K_ + group_size_ - 1) / group_size_;
  tiles_ = (N_ + kTileRows - 1) / kTileRows;
  blocks_ = (K_ + kBlockColumns - 1) / kBlockColumns;
}

Error WeightInputs::error(ErrorCode code, const std::string& problem) const {
  return Error(code, "qxc node '" + node_ + "': " + problem);
}

Tensor WeightInputs::expect(const KernelContext& context, size_t index, const char* name, ElementType type,
                            const Shape& shape) const {
  Tensor tensor = context.input(index);
  if (tensor.type != type) {
    throw error(kInvalidArgument, std::string("input '") + name + "' has element type " + std::to_string(tensor.type) +
                                      " instead of " + std::to_string(type));
  }
  if (tensor.shape != shape) {
    throw error(kInvalidArgument, std::string("input '") + name + "' has shape " + to_string(tensor.shape) +
                                      " instead of " + to_string(shape));
  }
  return tensor;
}

PackedWeight WeightInputs::read(const KernelContext& context, size_t first) const {
  PackedWeight weight{N_, K_, group_size_, groups_, blocks_, nullptr, nullptr, nullptr, nullptr, false};
  const Shape per_group{tiles_, groups_, kTileRows};
  weight.packed = expect(context, first, "packed", kUint8, {tiles_, blocks_, format_.bits, kLineBytes}).as<uint8_t>();
  weight.scales = expect(context, first + 1, "scales", kFloat16, per_group).as<uint16_t>();
  if (format_.code == Code::kUInt) {
    weight.zero_points = expect(context, first + 2, "zero_points", kUint8, per_group).as<uint8_t>();
  } else if (format_.code == Code::kLut) {
    const int64_t entries = int64_t{1} << format_.bits;
    const Tensor codebook = context.input(first + 2);
    weight.codebook_per_tensor = codebook.shape == Shape{1, 1, entries};
    const Shape shape = weight.codebook_per_tensor ? Shape{1, 1, entries} : Shape{tiles_, kTileRows, entries};
    weight.codebook = expect(context, first + 2, "codebook", kInt8, shape).as<int8_t>();
  }
  return weight;
}

}  // namespace qxc::ort
