// Times a packed product beside a plain read of as many bytes, without ONNX Runtime, on 1 or more threads of our own.
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "qxc/kernels.h"

namespace {

using Clock = std::chrono::steady_clock;

// Threads that spin between tasks, so that waking them costs nothing. They end with the object.
class Team {
 public:
  explicit Team(int threads) : size_(threads) {
    for (int i = 1; i < threads; ++i) others_.emplace_back([this, i] { work(i); });
  }
  ~Team() {
    stop_ = true;
    for (std::thread& thread : others_) thread.join();
  }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Seconds that body(0..size-1) takes, every call on a thread of its own.
  template <class Body>
  double time(const Body& body) {
    const auto call = [](const void* data, int i) { (*static_cast<const Body*>(data))(i); };
    const Clock::time_point start = Clock::now();
    task_ = call;
    data_ = &body;
    left_ = size_ - 1;
    round_.fetch_add(1, std::memory_order_release);
    body(0);
    while (left_.load(std::memory_order_acquire)) {
    }
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

 private:
  void work(int i) {
    for (int seen = 0; !stop_;) {
      if (round_.load(std::memory_order_acquire) == seen) continue;
      ++seen;
      task_(data_, i);
      left_.fetch_sub(1, std::memory_order_release);
    }
  }

  int size_;
  std::atomic<int> round_{0}, left_{0};
  std::atomic<bool> stop_{false};
  void (*task_)(const void*, int) = nullptr;
  const void* data_ = nullptr;
  std::vector<std::thread> others_;
};

// Reads memory in whole vectors, four lines a turn, and gives something that depends on all of it.
uint64_t read_all(const char* memory, size_t bytes) {
  typedef uint64_t Line __attribute__((vector_size(64), aligned(1), may_alias));
  Line sums[4] = {};
  for (size_t i = 0; i + 256 <= bytes; i += 256) {
    for (int line = 0; line < 4; ++line) sums[line] ^= *reinterpret_cast<const Line*>(memory + i + 64 * line);
  }
  const Line sum = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
  uint64_t total = 0;
  for (int i = 0; i < 8; ++i) total ^= sum[i];
  return total;
}

volatile uint64_t g_total;

double time_read(Team& team, const void* memory, size_t bytes) {
  const size_t part = bytes / static_cast<size_t>(team.size());
  return team.time(
      [&](int i) { g_total = read_all(static_cast<const char*>(memory) + part * static_cast<size_t>(i), part); });
}

double time_product(Team& team, const qxc_matmul& product) {
  const int64_t tiles = qxc_matmul_tiles(&product), threads = team.size();
  double prepare = 0;
  if (product.rows == 1) {
    const Clock::time_point start = Clock::now();
    qxc_matmul_prepare(&product, 0, 1);
    prepare = std::chrono::duration<double>(Clock::now() - start).count();
  } else {
    prepare = team.time(
        [&](int i) { qxc_matmul_prepare(&product, product.rows * i / threads, product.rows * (i + 1) / threads); });
  }
  return prepare + team.time([&](int i) {
    qxc_matmul_compute(&product, tiles * i / threads / 2 * 2,
                       i + 1 == threads ? tiles : tiles * (i + 1) / threads / 2 * 2);
  });
}

}  // namespace

// For each of `pairs` turns, going round `count` products with weights of `bytes` bytes: seconds of a product, and the
// mean of plain reads just before and just after it, each of another weight. Nothing is read twice before all the
// others.
extern "C" QXC_API void time_pairs(const qxc_matmul* products, int64_t count, size_t bytes, int32_t threads,
                                   int32_t pairs, double* product_seconds, double* read_seconds) {
  Team team(threads);
  int64_t at = 0;
  const auto next = [&]() -> const qxc_matmul& { return products[at++ % count]; };
  for (int32_t i = -2; i < pairs; ++i) {  // the first two warm up
    const double before = time_read(team, next().weight.packed, bytes);
    const double product = time_product(team, next());
    const double after = time_read(team, next().weight.packed, bytes);
    if (i < 0) continue;
    product_seconds[i] = product;
    read_seconds[i] = (before + after) / 2;
  }
}

// Seconds of each of `count` products in turn, `rounds` times over: [rounds, count].
extern "C" QXC_API void time_in_turn(const qxc_matmul* products, int64_t count, int32_t threads, int32_t rounds,
                                     double* seconds) {
  Team team(threads);
  for (int64_t i = -count; i < rounds * count; ++i) {  // the first round warms up
    const double product = time_product(team, products[(i + count) % count]);
    if (i >= 0) seconds[i] = product;
  }
}
