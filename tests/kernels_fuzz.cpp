// Runs every kernel of this processor on random shapes, beside a plain computation. Every buffer starts at an odd
// address and ends right before a page that must not be touched.
//
//     kernels_fuzz TRIALS SEED
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "../runtime_ops/kernels/kernels.h"

namespace {

using namespace qxc;

std::mt19937_64 g_random;

int64_t uniform(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(g_random); }

template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t count) : count_(static_cast<size_t>(count)) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = count_ * sizeof(T);
    const size_t pages = (bytes + page - 1) / page;
    mapped_ = (pages + 2) * page;
    memory_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory_ == MAP_FAILED || mprotect(memory_, page, PROT_NONE) ||
        mprotect(memory_ + (pages + 1) * page, page, PROT_NONE)) {
      std::perror("mmap");
      std::exit(2);
    }
    data_ = reinterpret_cast<T*>(memory_ + (pages + 1) * page - bytes);
  }
  ~Guarded() { munmap(memory_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T* data() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }
  size_t size() const { return count_; }

  template <class Draw>
  void fill(Draw draw) {
    for (size_t i = 0; i < count_; ++i) data_[i] = static_cast<T>(draw());
  }

 private:
  size_t count_, mapped_;
  char* memory_;
  T* data_;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Trial {
  Code code;
  int bits;
  Activation activation;
  int64_t M, N, K, group_size;
  bool per_tensor;
};

Trial draw_trial() {
  Trial trial{};
  trial.code = static_cast<Code>(uniform(0, 2));
  const int widths[] = {2, 3, 4, 5, 6, 8};
  trial.bits = widths[uniform(0, trial.code == Code::kLut ? 2 : 5)];
  trial.activation = static_cast<Activation>(uniform(0, 1));
  trial.M = uniform(0, 3) ? uniform(1, 12) : uniform(60, 140);
  trial.N = uniform(1, 100);
  trial.K = uniform(1, 700);
  const int64_t sizes[] = {16, 32, 64, 128, 256, trial.K};
  trial.group_size = sizes[uniform(0, 5)];
  trial.per_tensor = uniform(0, 1);
  return trial;
}

// Largest |y - reference| relative to the sum of magnitudes of the products.
double worst_error(const Trial& t, const Kernels& kernels) {
  const int64_t tiles = ceil_div(t.N, kTileRows), blocks = ceil_div(t.K, kBlockColumns);
  const int64_t groups = ceil_div(t.K, t.group_size), entries = int64_t{1} << t.bits;
  Guarded<uint8_t> packed(tiles * blocks * t.bits * kLineBytes), zero_points(tiles * groups * kTileRows);
  Guarded<uint16_t> scales(tiles * groups * kTileRows);
  Guarded<int8_t> codebook(t.per_tensor ? entries : tiles * kTileRows * entries);
  packed.fill([] { return uniform(0, 255); });
  zero_points.fill([] { return uniform(0, 255); });
  scales.fill([] { return uniform(0x2000, 0x3FFF); });  // 2^-7 to 2
  codebook.fill([] { return uniform(-128, 127); });
  const PackedWeight weight{t.N,           t.K,           t.group_size,       groups,          blocks,
                            packed.data(), scales.data(), zero_points.data(), codebook.data(), t.per_tensor};

  const bool a16 = t.activation == Activation::kA16;
  const int64_t unit = std::min<int64_t>(groups == 1 ? 256 : t.group_size, a16 ? 32 : 256);
  const int64_t columns = blocks * kBlockColumns, units = ceil_div(t.K, unit);
  Guarded<float> a(t.M * t.K), y(t.M * t.N), bias(t.N), row_scales(a16 ? t.M * units : t.M), sums(t.M * units);
  Guarded<int8_t> high(t.M * columns), low(t.M * columns);
  Guarded<int32_t> high_sums(t.M * units), low_sums(t.M * units);
  std::normal_distribution<float> normal;
  a.fill([&] { return normal(g_random); });
  bias.fill([&] { return normal(g_random); });
  const QuantizedRows rows{t.M,
                           columns,
                           unit,
                           units,
                           high.data(),
                           a16 ? low.data() : nullptr,
                           high_sums.data(),
                           a16 ? low_sums.data() : nullptr,
                           row_scales.data(),
                           sums.data()};
  const QuantizeRow quantize = a16 ? kernels.quantize_a16 : kernels.quantize_a8;
  for (int64_t m = 0; m < t.M; ++m) {
    if (!quantize(a.data() + m * t.K, t.K, m, rows)) std::exit(3);
  }
  const Output out{y.data(), t.N, bias.data(), 1};
  const MatMulTiles matmul = kernels.matmul(t.code, t.bits, t.activation);
  for (int64_t tile = 0; tile < tiles; tile += kTilesPerCall) {
    matmul(weight, rows, tile, std::min<int64_t>(tile + kTilesPerCall, tiles), out);
  }

  double worst = 0;
  std::vector<float> decoded(static_cast<size_t>(t.K));
  for (int64_t n = 0; n < t.N; ++n) {
    decode_row(weight, t.code, t.bits, n, 0, t.K, decoded.data());
    for (int64_t m = 0; m < t.M; ++m) {
      double sum = bias[n], magnitude = std::fabs(sum);
      for (int64_t k = 0; k < t.K; ++k) {
        const int64_t at = m * columns + k;
        const double q = a16 ? 256.0 * high[at] + low[at] : high[at];
        const double scale = a16 ? row_scales[m * units + k / unit] : row_scales[m];
        const double product = q * scale * decoded[static_cast<size_t>(k)];
        sum += product;
        magnitude += std::fabs(product);
      }
      worst = std::max(worst, std::fabs(y[m * t.N + n] - sum) / magnitude);
    }
  }

  const Guarded<bool> done(t.M);
  std::fill(done.data(), done.data() + t.M, false);
  Guarded<float> exact(t.M * t.N);
  matmul_float(weight, t.code, t.bits, a.data(), t.M, done.data(), 0, t.N, {exact.data(), t.N, bias.data(), 1});
  for (const float value : std::vector<float>(exact.data(), exact.data() + exact.size())) {
    if (!std::isfinite(value)) return INFINITY;
  }
  return worst;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const int64_t trials = std::atoll(argv[1]);
  g_random.seed(static_cast<uint64_t>(std::atoll(argv[2])));
  for (const Kernels* kernels : {portable_kernels(), avx2_kernels(), avx512_kernels()}) {
    if (!kernels) continue;
    for (int64_t i = 0; i < trials; ++i) {
      const Trial t = draw_trial();
      const double error = worst_error(t, *kernels);
      // zero points are taken from A itself in a16, not from its integers
      const double tolerance = t.activation == Activation::kA16 && t.code == Code::kUInt ? 5e-5 : 2e-6;
      if (!(error <= tolerance)) {
        std::printf("%s: code %d bits %d a%d M %ld N %ld K %ld group %ld per_tensor %d: error %g\n", kernels->name,
                    static_cast<int>(t.code), t.bits, t.activation == Activation::kA8 ? 8 : 16, t.M, t.N, t.K,
                    t.group_size, t.per_tensor, error);
        return 1;
      }
    }
    std::printf("%s: %ld trials\n", kernels->name, trials);
  }
  return 0;
}
