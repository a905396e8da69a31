#include "matmul_packed.h"

#include <algorithm>
#include <memory>
#include <new>

namespace qxc::ort {
namespace {

constexpr int64_t kSerialWork = 1 << 16;  // multiplications for which waking a thread costs more than it saves
constexpr int64_t kLargestUnitA8 = 256, kLargestUnitA16 = 32;
constexpr int64_t kFewestOutputsA16 = 64;  // fewer may all cancel, and leave less than 16 bits can tell
constexpr size_t kAlignment = 64;

Activation parse_activation(const WeightInputs& weight, const std::string& name) {
  if (name == "a8") return Activation::kA8;
  if (name == "a16") return Activation::kA16;
  throw weight.error(kInvalidGraph, "activation '" + name + "' is neither 'a16' nor 'a8'");
}

// The memory of QuantizedRows, in one piece.
class Scratch {
 public:
  Scratch(const WeightInputs& weight, Activation activation, int64_t rows) {
    const bool a16 = activation == Activation::kA16;
    const int64_t largest_unit = a16 ? kLargestUnitA16 : kLargestUnitA8;
    rows_.rows = rows;
    rows_.columns = (weight.columns() + kBlockColumns - 1) / kBlockColumns * kBlockColumns;
    rows_.unit = weight.groups() == 1 ? largest_unit : std::min(weight.group_size(), largest_unit);
    rows_.units = (weight.columns() + rows_.unit - 1) / rows_.unit;

    size_t bytes = 0;
    const auto reserve = [&bytes](int64_t count, size_t size) {
      const size_t offset = bytes;
      bytes += (static_cast<size_t>(count) * size + kAlignment - 1) / kAlignment * kAlignment;
      return offset;
    };
    const size_t high = reserve(rows * rows_.columns, 1);
    const size_t low = reserve(a16 ? rows * rows_.columns : 0, 1);
    const size_t high_sums = reserve(rows * rows_.units, sizeof(int32_t));
    const size_t low_sums = reserve(a16 ? rows * rows_.units : 0, sizeof(int32_t));
    const size_t scales = reserve(a16 ? rows * rows_.units : rows, sizeof(float));
    const size_t sums = reserve(rows * rows_.units, sizeof(float));
    memory_.reset(static_cast<char*>(::operator new(bytes, std::align_val_t{kAlignment})));
    rows_.high = reinterpret_cast<int8_t*>(memory_.get() + high);
    rows_.low = a16 ? reinterpret_cast<int8_t*>(memory_.get() + low) : nullptr;
    rows_.high_sums = reinterpret_cast<int32_t*>(memory_.get() + high_sums);
    rows_.low_sums = a16 ? reinterpret_cast<int32_t*>(memory_.get() + low_sums) : nullptr;
    rows_.scales = reinterpret_cast<float*>(memory_.get() + scales);
    rows_.sums = reinterpret_cast<float*>(memory_.get() + sums);
  }

  const QuantizedRows& rows() const { return rows_; }

 private:
  struct Free {
    void operator()(char* memory) const { ::operator delete(memory, std::align_val_t{kAlignment}); }
  };
  QuantizedRows rows_{};
  std::unique_ptr<char, Free> memory_;
};

}  // namespace

MatMulPacked::MatMulPacked(WeightFormat format, const Kernels& kernels, const KernelInfo& info)
    : weight_inputs_(format, info),
      activation_(parse_activation(weight_inputs_, info.attribute_string("activation"))),
      quantize_(activation_ == Activation::kA8 ? kernels.quantize_a8 : kernels.quantize_a16),
      matmul_(kernels.matmul(format.code, format.bits, activation_)) {}

void MatMulPacked::compute(const KernelContext& context) const {
  const int64_t K = weight_inputs_.columns(), N = weight_inputs_.rows();
  const Tensor a = context.input(0);
  const PackedWeight weight = weight_inputs_.read(context, 1);
  const Tensor bias = context.input(1 + weight_inputs_.count());
  if (a.type != kFloat || a.shape.empty() || a.shape.back() != K) {
    throw weight_inputs_.error(kInvalidArgument, "input 'A' has shape " + to_string(a.shape) +
                                                     " instead of float32 [..., " + std::to_string(K) + "]");
  }
  if (bias.type != kFloat || (bias.shape != Shape{N} && bias.shape != Shape{1})) {
    throw weight_inputs_.error(kInvalidArgument, "input 'bias' has shape " + to_string(bias.shape) +
                                                     " instead of float32 [1] or [" + std::to_string(N) + "]");
  }
  Shape shape = a.shape;
  shape.back() = N;
  const Output out{context.float_output(shape), N, bias.as<float>(), bias.shape[0] == 1 ? 0 : 1};
  int64_t M = 1;
  for (size_t i = 0; i + 1 < a.shape.size(); ++i) M *= a.shape[i];
  if (M == 0) return;
  const int64_t tiles = weight_inputs_.tiles();

  const auto run = [&context](int64_t count, bool serial, const auto& body) {
    if (!serial) return context.parallel_for(count, body);
    for (int64_t i = 0; i < count; ++i) body(i);
  };

  const std::unique_ptr<bool[]> done(new bool[static_cast<size_t>(M)]());
  const bool exact = activation_ == Activation::kA16 && N < kFewestOutputsA16;
  if (!exact) {
    const Scratch scratch(weight_inputs_, activation_, M);
    run(M, M * K < kSerialWork, [&](int64_t m) { done[m] = quantize_(a.as<float>() + m * K, K, m, scratch.rows()); });
    const int64_t calls = (tiles + kTilesPerCall - 1) / kTilesPerCall;
    run(calls, M * K * N < kSerialWork, [&](int64_t call) {
      const int64_t first = call * kTilesPerCall;
      matmul_(weight, scratch.rows(), first, std::min(first + kTilesPerCall, tiles), out);
    });
  }
  if (std::all_of(done.get(), done.get() + M, [](bool row_is_done) { return row_is_done; })) return;
  const WeightFormat format = weight_inputs_.format();
  run(tiles, M * K * N < kSerialWork, [&](int64_t tile) {
    const int64_t first = tile * kTileRows;
    matmul_float(weight, format.code, format.bits, a.as<float>(), M, done.get(), first, std::min(first + kTileRows, N),
                 out);
  });
}

}  // namespace qxc::ort
