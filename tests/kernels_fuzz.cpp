// Runs the kernels of every instruction set of this processor on random shapes, beside a plain computation. Every
// buffer starts at an odd address and ends right before a page that must not be touched.
//
//     kernels_fuzz TRIALS SEED
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "qxc/kernels.h"

namespace {

std::mt19937_64 g_random;

int64_t uniform(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(g_random); }

// Memory between two pages that cannot be read; `align` is 1 for data that may lie anywhere.
class Guarded {
 public:
  explicit Guarded(size_t bytes, size_t align = 1) : bytes_((bytes + align - 1) / align * align) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t pages = (bytes_ + page - 1) / page;
    mapped_ = (pages + 2) * page;
    memory_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory_ == MAP_FAILED || mprotect(memory_, page, PROT_NONE) ||
        mprotect(memory_ + (pages + 1) * page, page, PROT_NONE)) {
      std::perror("mmap");
      std::exit(2);
    }
    data_ = memory_ + (pages + 1) * page - bytes_;
  }
  ~Guarded() { munmap(memory_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

  template <class T, class Draw>
  void fill(Draw draw) {
    for (size_t i = 0; i < bytes_ / sizeof(T); ++i) as<T>()[i] = static_cast<T>(draw());
  }

 private:
  size_t bytes_, mapped_;
  char *memory_, *data_;
};

// Written apart from the library's: by the definition of float16.
double half_value(uint16_t half) {
  const int exponent = half >> 10 & 31;
  const double mantissa = exponent ? 1024 + (half & 1023) : half & 1023;
  return (half & 0x8000 ? -1 : 1) * std::ldexp(mantissa, std::max(exponent, 1) - 25);
}

struct Trial {
  qxc_weight weight;
  qxc_activation activation;
  qxc_element element;
  qxc_epilogue epilogue;
  int64_t M;
};

Trial draw_trial() {
  Trial trial{};
  qxc_weight& weight = trial.weight;
  weight.code = static_cast<qxc_code>(uniform(0, 3));
  const int widths[] = {2, 3, 4, 5, 6, 8};
  weight.bits = weight.code == QXC_MXFP4 ? 4 : widths[uniform(0, weight.code == QXC_LUT ? 2 : 5)];
  trial.epilogue = uniform(0, 3) ? QXC_NO_EPILOGUE : QXC_SILU_GATE;
  weight.rows = trial.epilogue == QXC_SILU_GATE ? 32 * uniform(1, 4) : uniform(1, 100);
  weight.columns = uniform(1, 700);
  const int64_t sizes[] = {16, 32, 64, 128, 256, weight.columns};
  weight.group_size = weight.code == QXC_MXFP4 ? 32 : sizes[uniform(0, 5)];
  weight.codebook_per_tensor = uniform(0, 1) != 0;
  trial.activation = static_cast<qxc_activation>(uniform(0, 2));
  trial.element = static_cast<qxc_element>(uniform(0, 1));
  trial.M = uniform(0, 3) ? uniform(1, 12) : uniform(60, 140);
  return trial;
}

double largest(const std::vector<double>& values, int64_t first, int64_t last) {
  double magnitude = 0;
  for (int64_t k = first; k < last; ++k) magnitude = std::max(magnitude, std::fabs(values[static_cast<size_t>(k)]));
  return magnitude;
}

// How far Y may be from the product with the decoded weights: what rounding A loses, and float's own errors.
double bound(const Trial& t, const std::vector<double>& a, const std::vector<float>& w) {
  const int64_t K = t.weight.columns;
  double bound = 0, magnitude = 0;
  for (int64_t k = 0; k < K; ++k) {
    const double weight = std::fabs(w[static_cast<size_t>(k)]);
    magnitude += weight * std::fabs(a[static_cast<size_t>(k)]);
    // a8 rounds to half a step; a16 within its unit of at most 128 to at most a step
    if (t.activation == QXC_A8) bound += weight * largest(a, 0, K) / 127 * 0.5001;
    if (t.activation == QXC_A16) bound += weight * largest(a, k / 128 * 128, std::min(K, k / 128 * 128 + 128)) / 32512;
  }
  return bound + magnitude * 3e-6;
}

// A number of the reference, and how far from it a kernel may be.
struct Bounded {
  double value, bound;
};

// |silu'| is at most 1.1, and |silu(x)| at most |x|.
Bounded silu_gate(const Bounded& gate, const Bounded& up) {
  const double silu = gate.value / (1 + std::exp(-gate.value));
  const double of_gate = 1.1 * gate.bound;
  return {silu * up.value, of_gate * (std::fabs(up.value) + up.bound) + std::fabs(silu) * up.bound};
}

// Largest |y - reference| over what is allowed.
double worst_error(Trial t, const qxc_kernels* kernels) {
  qxc_weight& weight = t.weight;
  const int64_t M = t.M, N = weight.rows, K = weight.columns;
  const bool gated = t.epilogue == QXC_SILU_GATE;
  const int64_t outputs = gated ? N / 2 : N;
  qxc_weight_bytes bytes;
  if (qxc_weight_check(&weight, &bytes)) std::exit(3);
  Guarded packed(bytes.packed), scales(bytes.scales), zero_points(bytes.zero_points), codebook(bytes.codebook);
  const auto any_byte = [] { return uniform(0, 255); };
  packed.fill<uint8_t>(any_byte);
  zero_points.fill<uint8_t>(any_byte);
  codebook.fill<uint8_t>(any_byte);
  if (weight.code == QXC_MXFP4) {
    scales.fill<uint8_t>([] { return uniform(120, 128); });
  } else {
    scales.fill<uint16_t>([] { return uniform(0x2000, 0x3FFF); });  // 2^-7 to 2
  }
  weight.packed = packed.as<void>();
  weight.scales = scales.as<void>();
  weight.zero_points = zero_points.as<void>();
  weight.codebook = codebook.as<void>();

  const bool is_half = t.element == QXC_FLOAT16;
  const size_t element_bytes = is_half ? 2 : 4;
  Guarded a(static_cast<size_t>(M * K) * element_bytes), y(static_cast<size_t>(M * outputs) * element_bytes);
  Guarded bias(static_cast<size_t>(N) * 4);
  std::normal_distribution<float> normal;
  if (is_half) {
    a.fill<uint16_t>([] { return uniform(0x2C00, 0x3FFF) | uniform(0, 1) << 15; });  // 2^-4 to 2, of either sign
  } else {
    a.fill<float>([&] { return normal(g_random); });
  }
  bias.fill<float>([&] { return normal(g_random); });
  qxc_matmul product{kernels,      weight,       t.activation,     t.element, t.epilogue, M,
                     a.as<void>(), y.as<void>(), bias.as<float>(), 1,         nullptr};
  size_t workspace_bytes = 0;
  qxc_matmul always_gated = product;
  always_gated.epilogue = QXC_SILU_GATE;
  if (qxc_matmul_check(&always_gated, &workspace_bytes) != (N % 32 ? QXC_BAD_SIZE : QXC_OK)) std::exit(3);
  if (qxc_matmul_check(&product, &workspace_bytes)) std::exit(3);
  const Guarded workspace(workspace_bytes, QXC_ALIGNMENT);
  product.workspace = workspace.as<void>();
  qxc_matmul_prepare(&product, 0, M);
  const int64_t tiles = qxc_matmul_tiles(&product);
  for (int64_t tile = 0; tile < tiles;) {
    const int64_t end = std::min(tile + (gated ? 2 * uniform(1, 2) : uniform(1, 3)), tiles);
    qxc_matmul_compute(&product, tile, end);
    tile = end;
  }

  double worst = 0;
  std::vector<float> decoded(static_cast<size_t>(K));
  std::vector<double> row(static_cast<size_t>(K));
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t k = 0; k < K; ++k) {
      row[static_cast<size_t>(k)] = is_half ? half_value(a.as<uint16_t>()[m * K + k]) : a.as<float>()[m * K + k];
    }
    const auto linear = [&](int64_t n) {
      qxc_weight_decode_row(&weight, n, 0, K, decoded.data());
      double sum = bias.as<float>()[n];
      for (size_t k = 0; k < decoded.size(); ++k) sum += row[k] * decoded[k];
      return Bounded{sum, bound(t, row, decoded) + 1e-6};
    };
    for (int64_t n = 0; n < outputs; ++n) {
      const int64_t gate = n / 16 * 32 + n % 16;
      Bounded expected = gated ? silu_gate(linear(gate), linear(gate + 16)) : linear(n);
      if (is_half) {
        expected.value = std::clamp(expected.value, -65536.0, 65536.0);  // half_value of the infinities
        expected.bound += std::fabs(expected.value) / 2048 + 0x1p-25;
      }
      const double value = is_half ? half_value(y.as<uint16_t>()[m * outputs + n]) : y.as<float>()[m * outputs + n];
      worst = std::max(worst, std::fabs(value - expected.value) / expected.bound);
    }
    if (m == 3) m = std::max<int64_t>(m, M - 5);  // the first rows and the last
  }
  return worst;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const int64_t trials = std::atoll(argv[1]);
  g_random.seed(static_cast<uint64_t>(std::atoll(argv[2])));
  for (const char* name : {"portable", "avx2", "avx_vnni", "avx512", "neon", "neon_dotprod", "neon_i8mm"}) {
    const qxc_kernels* kernels = qxc_kernels_for(name);
    if (!kernels) continue;
    for (int64_t i = 0; i < trials; ++i) {
      const Trial t = draw_trial();
      const double error = worst_error(t, kernels);
      if (!(error <= 1)) {
        const qxc_weight& w = t.weight;
        std::printf(
            "%s: code %d bits %d activation %d element %d epilogue %d M %ld N %ld K %ld group %ld per_tensor %d: %g "
            "times the "
            "bound\n",
            name, w.code, w.bits, t.activation, t.element, t.epilogue, static_cast<long>(t.M),
            static_cast<long>(w.rows), static_cast<long>(w.columns), static_cast<long>(w.group_size),
            w.codebook_per_tensor, error);
        return 1;
      }
    }
    std::printf("%s: %ld trials\n", name, static_cast<long>(trials));
  }
  return 0;
}
