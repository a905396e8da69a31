// Runs the kernels of every instruction set of this processor on random shapes, beside a plain computation and beside
// each other. Every buffer starts at an odd address and ends right before a page that must not be touched.
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
#include <utility>
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
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const double sign = half & 0x8000 ? -1 : 1;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * std::ldexp(exponent ? 1024 + fraction : fraction, std::max(exponent, 1) - 25);
}

enum class Kind {
  kPlain,
  kExtreme,    // the largest integers that there are, all of one sign: they overflow what is too narrow
  kNotFinite,  // A holds NaN or infinity
};

struct Trial {
  Kind kind;
  bool unit_scales;  // sums of integers stay integers, and must come out the same everywhere
  qxc_weight weight;
  qxc_activation activation;
  qxc_element element;
  int64_t M;
};

bool is_small_float(const qxc_weight& weight) { return weight.code >= QXC_E2M3; }

Trial draw_trial() {
  Trial trial{};
  const Kind kinds[] = {Kind::kExtreme, Kind::kNotFinite};
  const int64_t kind = uniform(0, 7);
  trial.kind = kind < 2 ? kinds[kind] : Kind::kPlain;
  trial.unit_scales = uniform(0, 1) != 0;
  qxc_weight& weight = trial.weight;
  weight.code = static_cast<qxc_code>(uniform(0, 7));
  const int widths[] = {2, 3, 4, 5, 6, 8};
  switch (weight.code) {
    case QXC_FP: weight.bits = 4; break;
    case QXC_E2M3:
    case QXC_E3M2: weight.bits = 6; break;
    case QXC_E4M3:
    case QXC_E5M2: weight.bits = 8; break;
    default: weight.bits = widths[uniform(0, weight.code == QXC_LUT ? 2 : 5)];
  }
  weight.rows = uniform(0, 3) ? uniform(1, 100) : 32 * uniform(1, 4);
  weight.columns = uniform(0, 3) ? uniform(1, 700) : uniform(1, 128);
  const int64_t sizes[] = {16, 32, 64, 128, 256, weight.columns};
  weight.group_size = sizes[uniform(0, 5)];
  weight.scale = static_cast<qxc_scale>(uniform(0, 2));
  weight.codebook_per_tensor = uniform(0, 1) != 0;
  trial.activation = static_cast<qxc_activation>(uniform(0, 2));
  trial.element = static_cast<qxc_element>(uniform(0, 1));
  trial.M = uniform(0, 3) ? uniform(1, 12) : uniform(60, 140);
  return trial;
}

// A trial's weight, A and bias.
struct Tensors {
  qxc_weight weight;
  bool is_half;
  int64_t M;
  std::unique_ptr<Guarded> packed, scales, row_scales, zero_points, codebook, a, bias;

  explicit Tensors(const Trial& t) : weight(t.weight), is_half(t.element == QXC_FLOAT16), M(t.M) {
    qxc_weight_bytes bytes;
    if (qxc_weight_check(&weight, &bytes)) std::exit(3);
    const bool is_extreme = t.kind == Kind::kExtreme;
    const int64_t same = uniform(0, 1) * 255;
    const auto byte = [&] { return is_extreme ? same : uniform(0, 255); };
    packed = std::make_unique<Guarded>(bytes.packed);
    const bool is_float8 = weight.bits == 8 && is_small_float(weight);
    packed->fill<uint8_t>([&] {
      const int64_t code = byte();
      return is_float8 && (code & 0x60) == 0x60 ? code ^ 0x20 : code;  // not NaN, nor sums beyond float16
    });
    zero_points = std::make_unique<Guarded>(bytes.zero_points);
    zero_points->fill<uint8_t>(byte);
    codebook = std::make_unique<Guarded>(bytes.codebook);
    codebook->fill<uint8_t>([&] { return is_extreme ? 128 : uniform(0, 255); });
    scales = std::make_unique<Guarded>(bytes.scales);
    row_scales = std::make_unique<Guarded>(bytes.row_scales);
    const auto half = [&] { return t.unit_scales ? 0x3C00 : uniform(0x2000, 0x3FFF); };  // 2^-7 to 2
    if (weight.scale == QXC_SCALE_FLOAT16) {
      scales->fill<uint16_t>(half);
    } else if (weight.scale == QXC_SCALE_E8M0) {
      scales->fill<uint8_t>([&] { return t.unit_scales ? 127 : uniform(120, 128); });
    } else {  // a row's unit scale is 128 / 256 of 2
      scales->fill<uint8_t>([&] { return t.unit_scales ? 128 : uniform(0, 255); });
      row_scales->fill<uint16_t>([&] { return t.unit_scales ? 0x4000 : half(); });
    }
    const size_t count = static_cast<size_t>(M * weight.columns);
    a = std::make_unique<Guarded>(count * (is_half ? 2 : 4));
    std::normal_distribution<float> normal;
    if (is_half) {
      const int64_t sign = uniform(0, 1) << 15;
      a->fill<uint16_t>([&] {
        return is_extreme ? 0x3C00 | sign : uniform(0x2C00, 0x3FFF) | uniform(0, 1) << 15;  // 2^-4 to 2
      });
    } else {
      const float same_a = uniform(0, 1) ? 1.0f : -1.0f;
      a->fill<float>([&] { return is_extreme ? same_a : normal(g_random); });
    }
    if (t.kind == Kind::kNotFinite) {
      const size_t at = static_cast<size_t>(uniform(0, static_cast<int64_t>(count) - 1));
      const bool nan = uniform(0, 1) != 0;
      if (is_half) {
        a->as<uint16_t>()[at] = nan ? 0x7E00 : 0xFC00;
      } else {
        a->as<float>()[at] = nan ? NAN : -INFINITY;
      }
    }
    bias = std::make_unique<Guarded>(static_cast<size_t>(weight.rows) * 4);
    bias->fill<float>([&] { return normal(g_random); });
    weight.packed = packed->as<void>();
    weight.scales = scales->as<void>();
    weight.row_scales = row_scales->as<void>();
    weight.zero_points = zero_points->as<void>();
    weight.codebook = codebook->as<void>();
  }

  double element(int64_t m, int64_t k) const {
    const int64_t at = m * weight.columns + k;
    return is_half ? half_value(a->as<uint16_t>()[at]) : a->as<float>()[at];
  }
};

// Numbers beyond float16 are as good as infinite.
double held(double value, bool is_half) { return is_half ? std::clamp(value, -65536.0, 65536.0) : value; }

// Y, by the kernels of one instruction set.
std::vector<double> product(const Trial& t, const Tensors& tensors, const qxc_kernels* kernels,
                            qxc_epilogue epilogue = QXC_NO_EPILOGUE) {
  const bool is_gated = epilogue == QXC_SILU_GATE;
  const int64_t N = is_gated ? t.weight.rows / 2 : t.weight.rows;
  const Guarded y(static_cast<size_t>(t.M * N) * (tensors.is_half ? 2 : 4));
  qxc_matmul product{kernels,
                     tensors.weight,
                     t.activation,
                     t.element,
                     epilogue,
                     t.M,
                     tensors.a->as<void>(),
                     y.as<void>(),
                     tensors.bias->as<float>(),
                     1,
                     nullptr};
  size_t workspace_bytes = 0;
  if (qxc_matmul_check(&product, &workspace_bytes)) std::exit(3);
  const Guarded workspace(workspace_bytes, QXC_ALIGNMENT);
  product.workspace = workspace.as<void>();
  qxc_matmul_prepare(&product, 0, t.M);
  const int64_t tiles = qxc_matmul_tiles(&product);
  for (int64_t tile = 0; tile < tiles;) {
    const int64_t end = std::min(tile + (is_gated ? 2 * uniform(1, 2) : uniform(1, 3)), tiles);
    qxc_matmul_compute(&product, tile, end);
    tile = end;
  }
  std::vector<double> values(static_cast<size_t>(t.M * N));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = held(tensors.is_half ? half_value(y.as<uint16_t>()[i]) : y.as<float>()[i], tensors.is_half);
  }
  return values;
}

double largest(const std::vector<double>& values, int64_t first, int64_t last) {
  double magnitude = 0;
  for (int64_t k = first; k < last; ++k) magnitude = std::max(magnitude, std::fabs(values[static_cast<size_t>(k)]));
  return magnitude;
}

// One number of Y as it should be.
struct Expected {
  int64_t at;        // in Y
  double value;      // of the product with the decoded weights
  double magnitude;  // sum of the magnitudes of what is added up
  double bound;      // how far Y may be from it: what rounding A loses, and float's own errors
};

std::vector<Expected> expected_product(const Trial& t, const Tensors& tensors) {
  const int64_t N = t.weight.rows, K = t.weight.columns;
  std::vector<Expected> all;
  std::vector<float> w(static_cast<size_t>(K));
  std::vector<double> a(static_cast<size_t>(K)), lost(static_cast<size_t>(K));
  for (int64_t m = 0; m < t.M; ++m) {
    if (m == 4) m = std::max<int64_t>(m, t.M - 4);  // the first rows and the last
    for (size_t k = 0; k < a.size(); ++k) a[k] = tensors.element(m, static_cast<int64_t>(k));
    for (int64_t k = 0; k < K; ++k) {
      // a8 rounds to half a step; a16 within its unit of at most 128 to at most a step
      const int64_t unit = k / 128 * 128;
      lost[static_cast<size_t>(k)] = t.activation == QXC_A8    ? largest(a, 0, K) / 127 * 0.5001
                                     : t.activation == QXC_A16 ? largest(a, unit, std::min(K, unit + 128)) / 32512
                                                               : 0;
    }
    for (int64_t n = 0; n < N; ++n) {
      qxc_weight_decode_row(&tensors.weight, n, 0, K, w.data());
      const double bias = tensors.bias->as<float>()[n];
      double sum = bias, magnitude = std::fabs(bias), rounding = 0;
      for (size_t k = 0; k < w.size(); ++k) {
        sum += a[k] * w[k];
        magnitude += std::fabs(a[k] * w[k]);
        rounding += lost[k] * std::fabs(w[k]);
      }
      const double of_element = tensors.is_half ? std::fabs(sum) / 2048 + 0x1p-25 : 0;
      all.push_back(
          {m * N + n, held(sum, tensors.is_half), magnitude, rounding + magnitude * 5e-6 + 1e-6 + of_element});
    }
  }
  return all;
}

bool is_near(double value, double expected, double bound) {
  if (!std::isfinite(expected) || !std::isfinite(bound)) {
    return std::isnan(expected) ? std::isnan(value) : value == expected;
  }
  return std::fabs(value - expected) <= bound;
}

// Whether no number that is added up is ever rounded, so that no order of additions matters.
bool is_exact(const Trial& t) {
  if (!t.unit_scales || t.kind == Kind::kNotFinite || is_small_float(t.weight)) return false;
  if (t.activation == QXC_A8) return true;
  const bool one_unit = t.weight.columns <= std::min<int64_t>(t.weight.group_size, 128);
  return t.activation == QXC_A16 && t.weight.rows >= 64 && t.weight.code != QXC_UINT && one_unit;
}

// Whether every product is added up in float: equal numbers, as of kExtreme, are all rounded the same way.
bool adds_floats(const Trial& t) {
  return t.activation == QXC_A32 || t.kind == Kind::kNotFinite || (t.activation == QXC_A16 && t.weight.rows < 64) ||
         is_small_float(t.weight);
}

// What is wrong with Y; null where nothing is. `portable` is another instruction set's, which may differ by the order
// in which floats are added up only.
const char* fault(const Trial& t, const std::vector<Expected>& expected, const std::vector<double>& y,
                  const std::vector<double>& portable) {
  for (const Expected& e : expected) {
    const size_t at = static_cast<size_t>(e.at);
    if (!is_near(y[at], e.value, e.bound)) return "far from the product";
    const double of_element = t.element == QXC_FLOAT16 ? std::fabs(e.value) / 1024 + 0x1p-24 : 0;
    const double bound = is_exact(t) ? 0 : (adds_floats(t) ? 5e-6 : 1e-6) * e.magnitude + of_element;
    if (!is_near(y[at], portable[at], bound)) return "not what portable kernels give";
  }
  return nullptr;
}

// What is wrong with the gated product of pairs of tiles, beside what the product without a gate gives; null where
// nothing is.
const char* gate_fault(const Trial& t, const Tensors& tensors, const qxc_kernels* kernels,
                       const std::vector<double>& y) {
  if (t.weight.rows % 32) return nullptr;
  const std::vector<double> gated = product(t, tensors, kernels, QXC_SILU_GATE);
  for (size_t i = 0; i < gated.size(); ++i) {
    const size_t gate = i / 16 * 32 + i % 16;
    const double up = y[gate + 16], silu = y[gate] / (1 + std::exp(-y[gate]));
    // float16 has rounded gate and up before they were multiplied here
    const double bound = t.element == QXC_FLOAT16 ? std::fabs(silu * up) / 256 + std::fabs(up) / 1024 + 0x1p-20
                                                  : std::fabs(silu * up) * 2e-6 + 1e-30;
    const double expected = held(silu * up, tensors.is_half);
    if (t.kind == Kind::kPlain && !is_near(gated[i], expected, bound)) return "the gate is wrong";
  }
  return nullptr;
}

// What is wrong with rotated rows; null where nothing is. The same bits from every instruction set.
const char* rotation_fault(const std::vector<const qxc_kernels*>& all) {
  const int64_t size = 8 << uniform(0, 3), columns = size * uniform(1, 5), rows = uniform(0, 4);
  const bool is_half = uniform(0, 1);
  const qxc_element element = is_half ? QXC_FLOAT16 : QXC_FLOAT32;
  const size_t bytes = static_cast<size_t>(rows * columns) * (is_half ? 2 : 4);
  Guarded x(bytes), first(bytes);
  std::normal_distribution<float> normal;
  if (is_half) {
    x.fill<uint16_t>([&] { return uniform(0, 1) << 15 | uniform(0, 0x5000); });
  } else {
    x.fill<float>([&] { return normal(g_random); });
  }
  for (const qxc_kernels* kernels : all) {
    Guarded y(bytes);
    if (qxc_rotate(kernels, element, rows, columns, size, x.as<void>(), y.as<void>())) return "is refused";
    if (kernels == all[0]) std::memcpy(first.as<void>(), y.as<void>(), bytes);
    if (std::memcmp(first.as<void>(), y.as<void>(), bytes)) return "differs from portable kernels";
    std::memcpy(y.as<void>(), x.as<void>(), bytes);
    if (qxc_rotate(kernels, element, rows, columns, size, y.as<void>(), y.as<void>())) return "is refused in place";
    if (std::memcmp(first.as<void>(), y.as<void>(), bytes)) return "differs in place";
  }
  const auto at = [is_half](const Guarded& values, int64_t i) {
    return is_half ? half_value(values.as<uint16_t>()[i]) : static_cast<double>(values.as<float>()[i]);
  };
  for (int64_t i = 0; i < rows * columns; ++i) {
    const int64_t start = i / size * size;
    double sum = 0, magnitude = 0;
    for (int64_t k = 0; k < size; ++k) {
      const bool is_negative = ((0x243F6A8885A308D3u >> (63 - k)) ^ __builtin_popcountll(k & (i - start))) & 1;
      sum += is_negative ? -at(x, start + k) : at(x, start + k);
      magnitude += std::fabs(at(x, start + k));
    }
    const double root = std::sqrt(static_cast<double>(size));
    if (!is_near(at(first, i), sum / root, magnitude * (is_half ? 1e-3 : 1e-6) + 1e-7)) return "is wrong";
  }
  if (qxc_rotate(all[0], element, rows, columns, 12, x.as<void>(), first.as<void>()) != QXC_BAD_SIZE) return "takes 12";
  return nullptr;
}

// What is wrong with norms of rows; null where nothing is.
const char* norm_fault(const std::vector<const qxc_kernels*>& all) {
  const int64_t M = uniform(0, 4), N = uniform(0, 3) ? uniform(2, 70) : uniform(71, 700);
  const bool is_half = uniform(0, 1), is_centered = uniform(0, 1), has_skip = uniform(0, 1);
  const size_t bytes = static_cast<size_t>(M * N) * (is_half ? 2 : 4);
  Guarded x(bytes), skip(bytes), gain(static_cast<size_t>(N) * 4), bias(static_cast<size_t>(N) * 4);
  std::normal_distribution<float> normal;
  for (Guarded* each : {&x, &skip}) {
    if (is_half) {
      each->fill<uint16_t>([&] { return uniform(0x2C00, 0x3DFF) | uniform(0, 1) << 15; });  // 2^-4 to 1.5
    } else {
      each->fill<float>([&] { return normal(g_random); });
    }
  }
  for (Guarded* each : {&gain, &bias}) each->fill<float>([&] { return normal(g_random); });
  const auto at = [is_half](const Guarded& values, int64_t i) {
    return is_half ? half_value(values.as<uint16_t>()[i]) : static_cast<double>(values.as<float>()[i]);
  };
  for (const qxc_kernels* kernels : all) {
    const Guarded sum(bytes), y(bytes);
    qxc_norm norm{};
    norm.kernels = kernels;
    norm.element = is_half ? QXC_FLOAT16 : QXC_FLOAT32;
    norm.is_centered = is_centered;
    norm.epsilon = 1e-2f;
    norm.rows = M;
    norm.columns = N;
    norm.x = x.as<void>();
    norm.gain = gain.as<float>();
    norm.y = y.as<void>();
    if (is_centered) norm.bias = bias.as<float>();
    if (has_skip) norm.skip = skip.as<void>(), norm.sum = sum.as<void>();
    if (qxc_norm_check(&norm)) return "is refused";
    for (int64_t row = M; row-- > 0;) qxc_norm_compute(&norm, row, row + 1);
    for (int64_t m = 0; m < M; ++m) {
      double mean = 0, square = 0;
      for (int64_t n = 0; n < N; ++n) {
        const int64_t i = m * N + n;
        const double wanted = held(at(x, i) + at(skip, i), is_half);
        if (has_skip && !is_near(at(sum, i), wanted, is_half ? 2e-3 : 1e-6)) return "has a wrong sum";
        if (is_centered) mean += at(has_skip ? sum : x, i) / static_cast<double>(N);
      }
      for (int64_t n = 0; n < N; ++n) {
        square += std::pow(at(has_skip ? sum : x, m * N + n) - mean, 2) / static_cast<double>(N);
      }
      for (int64_t n = 0; n < N; ++n) {
        const double factor = gain.as<float>()[n] / std::sqrt(square + norm.epsilon);
        const double wanted =
            (at(has_skip ? sum : x, m * N + n) - mean) * factor + (is_centered ? bias.as<float>()[n] : 0);
        if (!is_near(at(y, m * N + n), wanted, (is_half ? 2e-3 : 1e-5) * (1 + std::fabs(wanted)))) return "is wrong";
      }
    }
    norm.columns = 0;
    if (qxc_norm_check(&norm) != QXC_BAD_SIZE) return "takes no columns";
  }
  return nullptr;
}

// One attention, its tensors, and Y and the caches as they should be.
struct AttentionTrial {
  qxc_attention a{};
  bool is_half;
  std::unique_ptr<Guarded> query, key, value, cos, sin, past_key, past_value, mask;

  std::unique_ptr<Guarded> tensor(int64_t count) const {
    auto values = std::make_unique<Guarded>(static_cast<size_t>(count) * (is_half ? 2 : 4));
    std::normal_distribution<float> normal;
    if (is_half) {
      values->fill<uint16_t>([&] { return uniform(0x2C00, 0x3DFF) | uniform(0, 1) << 15; });  // 2^-4 to 1.5
    } else {
      values->fill<float>([&] { return normal(g_random); });
    }
    return values;
  }

  bool is_in_codes() const { return a.has_cache > QXC_CACHE_FLOAT; }

  // Bytes of a row of the cache.
  int64_t row() const {
    if (!is_in_codes()) return a.head_size * (is_half ? 2 : 4);
    return (a.has_cache == QXC_CACHE_INT8 ? a.head_size : (a.head_size + 1) / 2) + 2;
  }

  std::unique_ptr<Guarded> past() const {
    const int64_t rows = a.batch * a.kv_heads * a.past_tokens;
    if (!is_in_codes()) return tensor(rows * a.head_size);
    auto bytes = std::make_unique<Guarded>(static_cast<size_t>(rows * row()));
    bytes->fill<uint8_t>([] { return uniform(0, 255); });
    for (int64_t i = 1; i <= rows; ++i) bytes->as<uint8_t>()[i * row() - 1] = 0x3B;  // scales of 2^-9 to 2^-7
    return bytes;
  }

  double at(const void* values, int64_t i) const {
    return is_half ? half_value(static_cast<const uint16_t*>(values)[i])
                   : static_cast<double>(static_cast<const float*>(values)[i]);
  }

  AttentionTrial() : is_half(uniform(0, 1)) {
    a.element = is_half ? QXC_FLOAT16 : QXC_FLOAT32;
    a.batch = uniform(1, 2);
    const bool is_long = uniform(0, 3) == 0;  // the computation to compare with is slow
    a.length = is_long ? uniform(5, 40) : uniform(1, 4);
    a.kv_heads = uniform(1, 3);
    a.heads = a.kv_heads * (is_long || uniform(0, 7) ? uniform(1, 3) : 70);
    a.head_size = a.heads > 9 ? uniform(1, 4) : uniform(0, 1) ? uniform(1, 40) : 16 * uniform(1, 3);
    a.rotary_size = 2 * uniform(0, a.head_size / 2);
    a.rotary_batch = uniform(0, 1) ? 1 : a.batch;
    a.has_cache = uniform(0, 1) * uniform(1, 3);  // none, or one of the three formats
    const int64_t before = is_long || uniform(0, 3) ? uniform(0, 90) : uniform(250, 400);
    a.tokens = a.has_cache ? a.length + before : a.rotary_size ? a.length : uniform(0, 90);
    a.past_tokens = before + uniform(0, 1) * uniform(0, a.length + 3);
    a.scale = 0.2f;
    a.softcap = uniform(0, 1) ? 0.0f : 5.0f;
    const int64_t scores[4] = {a.batch, a.heads, a.length, a.tokens};
    for (int i = 0; i < 4; ++i) a.mask_shape[i] = uniform(0, 1) ? scores[i] : 1;
    const int64_t new_tokens = a.has_cache ? a.length : a.tokens;
    query = tensor(a.batch * a.length * a.heads * a.head_size);
    key = tensor(a.batch * new_tokens * a.kv_heads * a.head_size);
    value = tensor(a.batch * new_tokens * a.kv_heads * a.head_size);
    cos = tensor(a.rotary_batch * a.length * a.rotary_size);
    sin = tensor(a.rotary_batch * a.length * a.rotary_size);
    past_key = past();
    past_value = past();
    const int64_t masks = a.mask_shape[0] * a.mask_shape[1] * a.mask_shape[2] * a.mask_shape[3];
    mask = tensor(masks);
    for (int64_t i = 0; i < masks; ++i) {
      const int64_t kind = uniform(0, 5);  // some left out, some by the lowest number
      if (kind > 1) continue;
      if (is_half) {
        mask->as<uint16_t>()[i] = kind ? 0xFC00 : 0xFBFF;
      } else {
        mask->as<float>()[i] = kind ? -INFINITY : -3.4028234664e38f;
      }
    }
    a.query = query->as<void>();
    a.key = key->as<void>();
    a.value = value->as<void>();
    a.cos = cos->as<void>();
    a.sin = sin->as<void>();
    a.past_key = past_key->as<void>();
    a.past_value = past_value->as<void>();
    a.mask = mask->as<void>();
  }

  // Channel d of token `token` of a head, embedded or not.
  double channel(const void* x, int64_t heads, int64_t b, int64_t token, int64_t head, int64_t d, bool embeds) const {
    const int64_t R = embeds ? a.rotary_size : 0, D = a.head_size;
    const int64_t tokens = x == a.query || a.has_cache ? a.length : a.tokens;
    const auto own = [&](int64_t c) { return at(x, ((b * tokens + token) * heads + head) * D + c); };
    if (d >= R) return own(d);
    const int64_t row = ((a.rotary_batch == 1 ? 0 : b) * a.length + token) * R;
    const double turned = d < R / 2 ? -own(d + R / 2) : own(d - R / 2);
    return own(d) * at(a.cos, row + d) + turned * at(a.sin, row + d);
  }

  // Of the key or the value of token `token`, as far as it can be read; of a cache of numbers.
  double attended(const void* x, const void* past, bool embeds, int64_t b, int64_t g, int64_t token, int64_t d) const {
    const int64_t first_new = a.has_cache ? a.tokens - a.length : 0;
    if (token >= first_new) return channel(x, a.kv_heads, b, token - first_new, g, d, embeds);
    return at(past, ((b * a.kv_heads + g) * a.past_tokens + token) * a.head_size + d);
  }

  // The numbers [D] of a row in codes, and half of the distance between two.
  std::pair<std::vector<double>, double> decoded(const void* cache, int64_t place) const {
    const int64_t D = a.head_size, codes = row() - 2;
    const uint8_t* bytes = static_cast<const uint8_t*>(cache) + place * row();
    const uint32_t bits = static_cast<uint32_t>(bytes[codes] | bytes[codes + 1] << 8) << 16;
    float scale = 0;
    std::memcpy(&scale, &bits, sizeof scale);
    std::vector<double> numbers(static_cast<size_t>(D)), turned(static_cast<size_t>(D));
    const bool is_byte = a.has_cache == QXC_CACHE_INT8;
    for (int64_t d = 0; d < D; ++d) {
      const int code = is_byte ? bytes[d] : d < codes ? bytes[d] & 15 : bytes[d - codes] >> 4;
      numbers[static_cast<size_t>(d)] = static_cast<double>(scale) * (code - (is_byte ? 128 : 7.5));
    }
    const int64_t size = std::min<int64_t>(D & -D, 64);
    if (is_byte || size < 8) return {numbers, scale / 2};
    for (int64_t d = 0; d < D; ++d) {
      const int64_t start = d / size * size, k = d - start;
      double sum = 0;
      for (int64_t i = 0; i < size; ++i) {
        const double number = numbers[static_cast<size_t>(start + i)];
        const bool is_negative = ((0x243F6A8885A308D3u >> (63 - k)) ^ __builtin_popcountll(k & i)) & 1;
        sum += is_negative ? -number : number;
      }
      turned[static_cast<size_t>(d)] = sum / std::sqrt(static_cast<double>(size));
    }
    return {turned, scale / 2};
  }

  // Keys or values [B, G, T, D] that are attended to.
  std::vector<double> rows(const qxc_attention& call, bool is_key) const {
    std::vector<double> found;
    const int64_t kept = std::max(a.past_tokens, a.tokens);
    for (int64_t head = 0; head < a.batch * a.kv_heads; ++head) {
      for (int64_t t = 0; t < a.tokens; ++t) {
        if (is_in_codes()) {
          const auto numbers = decoded(is_key ? call.present_key : call.present_value, head * kept + t).first;
          found.insert(found.end(), numbers.begin(), numbers.end());
          continue;
        }
        for (int64_t d = 0; d < a.head_size; ++d) {
          const int64_t b = head / a.kv_heads, g = head % a.kv_heads;
          found.push_back(attended(is_key ? a.key : a.value, is_key ? a.past_key : a.past_value, is_key, b, g, t, d));
        }
      }
    }
    return found;
  }

  // Y for these keys and values.
  std::vector<double> expected(const std::vector<double>& keys, const std::vector<double>& values) const {
    const int64_t D = a.head_size;
    std::vector<double> y;
    for (int64_t b = 0; b < a.batch; ++b) {
      for (int64_t i = 0; i < a.length; ++i) {
        for (int64_t h = 0; h < a.heads; ++h) {
          std::vector<double> scores(static_cast<size_t>(a.tokens)), sums(static_cast<size_t>(D));
          const int64_t g = h / (a.heads / a.kv_heads), place[3] = {b, h, i};
          const auto row = [&](int64_t t) { return static_cast<size_t>(((b * a.kv_heads + g) * a.tokens + t) * D); };
          int64_t masked = 0;
          for (int axis = 0; axis < 3; ++axis)
            masked = masked * a.mask_shape[axis] + (a.mask_shape[axis] == 1 ? 0 : place[axis]);
          double most = -INFINITY, sum = 0;
          for (int64_t t = 0; t < a.tokens; ++t) {
            double score = 0;
            for (int64_t d = 0; d < D; ++d)
              score += channel(a.query, a.heads, b, i, h, d, true) * keys[row(t) + static_cast<size_t>(d)];
            score *= a.scale;
            if (a.softcap != 0) score = a.softcap * std::tanh(score / a.softcap);
            score += at(a.mask, masked * a.mask_shape[3] + (a.mask_shape[3] == 1 ? 0 : t));
            scores[static_cast<size_t>(t)] = static_cast<double>(static_cast<float>(score));
            most = std::max(most, scores[static_cast<size_t>(t)]);
          }
          for (int64_t t = 0; t < a.tokens; ++t) {
            const double weight = std::isinf(most) ? 0 : std::exp(scores[static_cast<size_t>(t)] - most);
            sum += weight;
            for (size_t d = 0; d < sums.size() && weight != 0; ++d) sums[d] += weight * values[row(t) + d];
          }
          for (const double total : sums) y.push_back(sum == 0 ? 0 : total / sum);
        }
      }
    }
    return y;
  }

  // Whether row `token` of a head of a present cache is what it should be.
  bool is_kept(const void* present, bool is_key, int64_t head, int64_t token, double tolerance) const {
    const int64_t D = a.head_size, rows = std::max(a.past_tokens, a.tokens), first_new = a.tokens - a.length;
    const int64_t b = head / a.kv_heads, g = head % a.kv_heads;
    const void *past = is_key ? a.past_key : a.past_value, *x = is_key ? a.key : a.value;
    if (token < first_new || token >= a.tokens) {
      return !std::memcmp(static_cast<const char*>(present) + (head * rows + token) * row(),
                          static_cast<const char*>(past) + (head * a.past_tokens + token) * row(),
                          static_cast<size_t>(row()));
    }
    double error = 0, limit = 0;  // of a rotated row, squares
    const auto [numbers, half_step] =
        is_in_codes() ? decoded(present, head * rows + token) : std::pair<std::vector<double>, double>{};
    for (int64_t d = 0; d < D; ++d) {
      const double wanted = channel(x, a.kv_heads, b, token - first_new, g, d, is_key);
      if (!is_in_codes()) {
        if (!is_near(at(present, (head * rows + token) * D + d), wanted, tolerance)) return false;
        continue;
      }
      const double difference = numbers[static_cast<size_t>(d)] - wanted;
      if (a.has_cache == QXC_CACHE_INT8 && std::fabs(difference) > half_step * 1.001) return false;
      error += difference * difference;
      limit += half_step * half_step;
    }
    return error <= limit * 1.001;
  }
};

// What is wrong with an attention; null where nothing is.
const char* attention_fault(const std::vector<const qxc_kernels*>& all) {
  AttentionTrial trial;
  qxc_attention& a = trial.a;
  const int64_t rows = std::max(a.past_tokens, a.tokens), bytes = trial.is_half ? 2 : 4;
  const double tolerance = trial.is_half ? 4e-3 : trial.is_in_codes() ? 3e-4 : 2e-5;
  std::vector<double> expected;
  if (!trial.is_in_codes()) expected = trial.expected(trial.rows(a, true), trial.rows(a, false));
  for (const qxc_kernels* kernels : all) {
    a.kernels = kernels;
    const bool is_in_place = a.past_tokens >= a.tokens && uniform(0, 1);
    const size_t cache_bytes = static_cast<size_t>(a.has_cache ? a.batch * a.kv_heads * rows * trial.row() : 0);
    const Guarded y(static_cast<size_t>(a.batch * a.length * a.heads * a.head_size * bytes));
    const Guarded keys(cache_bytes), values(cache_bytes);
    qxc_attention call = a;
    call.y = y.as<void>();
    call.present_key = keys.as<void>();
    call.present_value = values.as<void>();
    call.workers = uniform(1, 3);
    if (a.has_cache && is_in_place) {
      std::memcpy(call.present_key, a.past_key, cache_bytes);
      std::memcpy(call.present_value, a.past_value, cache_bytes);
      call.past_key = call.present_key;
      call.past_value = call.present_value;
    }
    size_t workspace_bytes = 0;
    if (qxc_attention_check(&call, &workspace_bytes)) return "is refused";
    const Guarded workspace(workspace_bytes, QXC_ALIGNMENT);
    call.workspace = workspace.as<void>();
    for (const qxc_attention_phase phase : {QXC_APPEND, QXC_ATTEND, QXC_COMBINE}) {
      const int64_t tasks = qxc_attention_tasks(&call, phase);
      for (int64_t task = tasks; task-- > 0;) {  // in any order
        qxc_attention_compute(&call, phase, uniform(0, call.workers - 1), task, task + 1);
      }
    }
    for (int64_t i = 0; a.has_cache && i < a.batch * a.kv_heads * rows; ++i) {
      for (const bool is_key : {true, false}) {
        const void* present = is_key ? call.present_key : call.present_value;
        if (!trial.is_kept(present, is_key, i / rows, i % rows, tolerance)) return "keeps other keys or values";
      }
    }
    if (trial.is_in_codes()) expected = trial.expected(trial.rows(call, true), trial.rows(call, false));
    for (size_t i = 0; i < expected.size(); ++i) {
      if (!is_near(trial.at(call.y, static_cast<int64_t>(i)), expected[i], tolerance)) return "is wrong";
    }
    call.tokens = a.length + a.past_tokens + 1;
    if (a.has_cache && !qxc_attention_check(&call, &workspace_bytes)) return "reads beyond the past";
    call = a;
    call.kv_heads = a.heads + 1;
    if (!qxc_attention_check(&call, &workspace_bytes)) return "shares heads unevenly";
    call = a;
    call.has_cache = QXC_CACHE_INT4 + 1;
    if (!qxc_attention_check(&call, &workspace_bytes)) return "takes a cache of no format";
  }
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const int64_t trials = std::atoll(argv[1]);
  g_random.seed(static_cast<uint64_t>(std::atoll(argv[2])));
  std::vector<const qxc_kernels*> all;
  for (int32_t place = 0; const qxc_kernels* kernels = qxc_kernels_at(place); ++place) {
    all.insert(all.begin(), kernels);  // portable ones, which are last, first
  }
  for (int64_t i = 0; i < trials; ++i) {
    if (const char* wrong = rotation_fault(all)) {
      std::printf("a rotation, trial %ld: %s\n", static_cast<long>(i), wrong);
      return 1;
    }
    if (const char* wrong = norm_fault(all)) {
      std::printf("a norm, trial %ld: %s\n", static_cast<long>(i), wrong);
      return 1;
    }
    if (const char* wrong = i % 2 ? nullptr : attention_fault(all)) {
      std::printf("an attention, trial %ld: %s\n", static_cast<long>(i), wrong);
      return 1;
    }
    const Trial t = draw_trial();
    const Tensors tensors(t);
    const std::vector<Expected> expected = expected_product(t, tensors);
    const std::vector<double> portable = product(t, tensors, all[0]);
    for (const qxc_kernels* kernels : all) {
      const std::vector<double> y = product(t, tensors, kernels);
      const char* wrong = fault(t, expected, y, portable);
      if (!wrong) wrong = gate_fault(t, tensors, kernels, y);
      if (!wrong) continue;
      const qxc_weight& w = t.weight;
      std::printf(
          "%s: trial %ld kind %d unit scales %d code %d bits %d activation %d element %d M %ld N %ld K %ld group %ld "
          "per_tensor %d: %s\n",
          qxc_kernels_name(kernels), static_cast<long>(i), static_cast<int>(t.kind), t.unit_scales, w.code, w.bits,
          t.activation, t.element, static_cast<long>(t.M), static_cast<long>(w.rows), static_cast<long>(w.columns),
          static_cast<long>(w.group_size), w.codebook_per_tensor, wrong);
      return 1;
    }
  }
  for (const qxc_kernels* kernels : all) {
    std::printf("%s: %ld trials\n", qxc_kernels_name(kernels), static_cast<long>(trials));
  }
  return 0;
}
