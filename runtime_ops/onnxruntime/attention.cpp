// Attention: Y = softmax(scale Q Kᵀ + mask) V, with rotary embedding and a cache of keys and values or without.
#include <algorithm>
#include <atomic>
#include <memory>
#include <new>

#include "operator.h"

namespace qxc::ort {
namespace {

constexpr int64_t kSerialWork = 1 << 17;   // multiplications for which waking a thread costs more than it saves
constexpr int64_t kSerialBytes = 1 << 18;  // of a cache that grows, likewise
constexpr int64_t kWorkers = 32;           // at once, at most: each has a scratch
constexpr int64_t kScaleBytes = 2;         // of a row in integers

struct AttentionType {
  bool rotary;
  int32_t cache;  // a qxc_cache, or 0

  std::string name() const {
    const char* suffix = cache == QXC_CACHE_INT8 ? "Int8" : cache == QXC_CACHE_INT4 ? "Int4" : "";
    return std::string(rotary ? "Rotary" : "") + (cache ? "Cached" : "") + "Attention" + suffix;
  }
  size_t inputs() const { return 4 + (rotary ? 2 : 0) + (cache ? 2 : 0); }
  size_t outputs() const { return cache ? 3 : 1; }
  size_t past_key() const { return rotary ? 5 : 3; }
  bool in_integers() const { return cache == QXC_CACHE_INT8 || cache == QXC_CACHE_INT4; }
  ElementType cache_type(ElementType element) const { return in_integers() ? kUint8 : element; }
  // Columns of the cache, for heads of this size.
  int64_t row(int64_t size) const {
    return !in_integers() ? size : (cache == QXC_CACHE_INT8 ? size : (size + 1) / 2) + kScaleBytes;
  }
};

struct Free {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{QXC_ALIGNMENT}); }
};

class Attention : public Kernel {
 public:
  Attention(const AttentionType& type, const qxc_kernels& kernels, const KernelInfo& info)
      : node_(info),
        type_(type),
        heads_(node_.attribute_int(info, "num_heads")),
        kv_heads_(node_.attribute_int(info, "kv_num_heads")),
        scale_(node_.attribute_float(info, "scale")),
        softcap_(node_.attribute_float(info, "softcap")),
        kernels_(kernels) {
    if (heads_ < 1 || kv_heads_ < 1 || heads_ % kv_heads_ != 0) {
      throw node_.error(kInvalidGraph, "num_heads " + std::to_string(heads_) + " is no multiple of kv_num_heads " +
                                           std::to_string(kv_heads_));
    }
    if (!(softcap_ >= 0)) throw node_.error(kInvalidGraph, "softcap is neither positive nor 0 for none");
  }

  void compute(const KernelContext& context) const override {
    Inputs in(*this, context);
    const Shape& query = in.query.shape;
    const int64_t B = query[0], L = query[1], D = query[2] / heads_;
    qxc_attention attention{};
    attention.kernels = &kernels_;
    attention.element = in.query.type == kFloat16 ? QXC_FLOAT16 : QXC_FLOAT32;
    attention.batch = B;
    attention.length = L;
    attention.tokens = type_.cache ? in.mask.shape[3] : in.key.shape[1];
    attention.heads = heads_;
    attention.kv_heads = kv_heads_;
    attention.head_size = D;
    attention.scale = scale_;
    attention.softcap = softcap_;
    attention.query = in.query.data;
    attention.key = in.key.data;
    attention.value = in.value.data;
    attention.mask = in.mask.data;
    std::copy(in.mask.shape.begin(), in.mask.shape.end(), attention.mask_shape);
    if (type_.rotary) {
      attention.rotary_size = in.cos.shape[2];
      attention.rotary_batch = in.cos.shape[0];
      attention.cos = in.cos.data;
      attention.sin = in.sin.data;
    }
    attention.y = node_.output(context, 0, in.query.type, query);
    int64_t cache_bytes = 0;
    if (type_.cache) {
      Shape present = in.past_key.shape;
      present[2] = std::max(present[2], attention.tokens);
      attention.has_cache = type_.cache;
      attention.past_tokens = in.past_key.shape[2];
      attention.past_key = in.past_key.data;
      attention.past_value = in.past_value.data;
      attention.present_key = node_.output(context, 1, in.past_key.type, present);
      attention.present_value = node_.output(context, 2, in.past_key.type, present);
      const bool is_in_place =
          attention.past_key == attention.present_key && attention.past_value == attention.present_value;
      if (!is_in_place) cache_bytes = 8 * element_count(present.begin(), present.end());
    }
    const int64_t numbers = element_count(query.begin(), query.end());
    const bool is_serial = numbers <= kSerialWork / std::max<int64_t>(attention.tokens, 1);
    attention.workers = is_serial ? 1 : kWorkers;
    size_t bytes = 0;
    if (qxc_attention_check(&attention, &bytes)) {
      throw node_.error(kInvalidArgument, "input 'query' has shape " + to_string(query) + ", which is too large");
    }
    const std::unique_ptr<void, Free> workspace(::operator new(bytes, std::align_val_t{QXC_ALIGNMENT}, std::nothrow));
    if (!workspace) {
      throw node_.error(kFail, "input 'query' has shape " + to_string(query) + ", whose workspace of " +
                                   std::to_string(bytes) + " bytes this machine lacks");
    }
    attention.workspace = workspace.get();
    run(context, attention, QXC_APPEND, is_serial && cache_bytes <= kSerialBytes);
    run(context, attention, QXC_ATTEND, is_serial);
    run(context, attention, QXC_COMBINE, is_serial);
  }

 private:
  // The tensors of a call, checked.
  struct Inputs {
    Tensor query, key, value, cos{}, sin{}, past_key{}, past_value{}, mask;

    Inputs(const Attention& self, const KernelContext& context)
        : query(self.node_.input(context, 0, "query")),
          key(self.node_.input(context, 1, "key")),
          value(self.node_.input(context, 2, "value")),
          mask(self.node_.input(context, self.type_.inputs() - 1, "mask")) {
      const int64_t H = self.heads_, G = self.kv_heads_;
      const bool is_attended = query.type == kFloat || query.type == kFloat16;
      if (!is_attended || query.shape.size() != 3 || query.shape[2] < 1 || query.shape[2] % H != 0) {
        throw self.wrong("query", query, "float32 or float16 [batch, length, " + std::to_string(H) + " heads]");
      }
      const int64_t B = query.shape[0], L = query.shape[1], D = query.shape[2] / H;
      const bool is_self = self.type_.rotary || self.type_.cache;
      const int64_t S = is_self || key.shape.size() != 3 ? L : key.shape[1];
      self.check("key", key, query.type, {{B, S, G * D}});
      self.check("value", value, query.type, {{B, S, G * D}});
      int64_t tokens = S;
      if (self.type_.rotary) {
        cos = self.node_.input(context, 3, "cos");
        sin = self.node_.input(context, 4, "sin");
        const int64_t R = cos.shape.size() == 3 ? cos.shape[2] : 0;
        if (R > D || R % 2 != 0) {
          throw self.wrong("cos", cos, "an even number of at most " + std::to_string(D) + " columns");
        }
        self.check("cos", cos, query.type, {{1, L, R}, {B, L, R}});
        self.check("sin", sin, query.type, {cos.shape});
      }
      if (self.type_.cache) {
        past_key = self.node_.input(context, self.type_.past_key(), "past_key");
        past_value = self.node_.input(context, self.type_.past_key() + 1, "past_value");
        const int64_t P = past_key.shape.size() == 4 ? past_key.shape[2] : 0;
        const ElementType kept = self.type_.cache_type(query.type);
        self.check("past_key", past_key, kept, {{B, G, P, self.type_.row(D)}});
        self.check("past_value", past_value, kept, {past_key.shape});
        tokens = mask.shape.size() == 4 ? mask.shape[3] : L;
        if (tokens < L || tokens - L > P) {
          throw self.wrong(
              "mask", mask,
              "columns for the " + std::to_string(L) + " new tokens and at most " + std::to_string(P) + " before");
        }
      }
      const auto fits = [this](size_t axis, int64_t size) { return mask.shape[axis] == size || mask.shape[axis] == 1; };
      if (mask.type != query.type || mask.shape.size() != 4 || !fits(0, B) || !fits(1, H) || !fits(2, L) ||
          !fits(3, tokens)) {
        throw self.wrong("mask", mask,
                         to_string(query.type) + " " + to_string(Shape{B, H, L, tokens}) + " or 1 of any of them");
      }
      for (Tensor* tensor : {&query, &key, &value, &cos, &sin, &past_key, &past_value, &mask}) {
        if (tensor->type != kUint8) tensor->align(query.type == kFloat16 ? 2 : 4);
      }
    }
  };

  Error wrong(const char* name, const Tensor& tensor, const std::string& wanted) const {
    return node_.error(kInvalidArgument, std::string("input '") + name + "' is " + to_string(tensor.type) + " " +
                                             to_string(tensor.shape) + " instead of " + wanted);
  }

  void check(const char* name, const Tensor& tensor, ElementType type, const std::vector<Shape>& shapes) const {
    if (tensor.type == type && std::find(shapes.begin(), shapes.end(), tensor.shape) != shapes.end()) return;
    std::string wanted = to_string(type);
    for (const Shape& shape : shapes) wanted += (&shape == &shapes[0] ? " " : " or ") + to_string(shape);
    throw wrong(name, tensor, wanted);
  }

  void run(const KernelContext& context, const qxc_attention& attention, qxc_attention_phase phase,
           bool is_serial) const {
    const int64_t tasks = qxc_attention_tasks(&attention, phase);
    if (is_serial || tasks < 2) return qxc_attention_compute(&attention, phase, 0, 0, tasks);
    // tasks differ by what their masks leave: whoever is free takes the next
    std::atomic<int64_t> next{0};
    context.parallel_for(std::min(tasks, attention.workers), [&](int64_t worker) {
      for (int64_t task = next++; task < tasks; task = next++) {
        qxc_attention_compute(&attention, phase, worker, task, task + 1);
      }
    });
  }

  Node node_;
  const AttentionType type_;
  const int64_t heads_, kv_heads_;
  const float scale_, softcap_;
  const qxc_kernels& kernels_;
};

void infer_shapes(const AttentionType& type, const ShapeContext& context) {
  const auto query = context.input(0);
  if (!query) return;
  context.set_output(0, *query);
  if (!type.cache) return;
  for (const size_t i : {size_t{0}, size_t{1}}) {
    auto present = context.input(type.past_key() + i);
    if (!present || present->shape.size() != 4) continue;
    present->shape[2] = {};  // that of the past, or more
    context.set_output(1 + i, *present);
  }
}

void add(const AttentionType& type, ElementType element, const qxc_kernels& kernels, std::vector<Operator>& operators) {
  std::vector<ElementType> inputs(type.inputs(), element), outputs(type.outputs(), element);
  if (type.cache) {
    inputs[type.past_key()] = inputs[type.past_key() + 1] = outputs[1] = outputs[2] = type.cache_type(element);
  }
  operators.push_back(
      {type.name(), inputs, outputs,
       [type, &kernels](const KernelInfo& info) { return std::make_unique<Attention>(type, kernels, info); },
       [type](const ShapeContext& context) { infer_shapes(type, context); }});
}

const Registration registration([](const qxc_kernels& kernels) {
  std::vector<Operator> operators;
  for (const bool rotary : {false, true}) {
    for (const int32_t cache : {0, int32_t{QXC_CACHE_FLOAT}, int32_t{QXC_CACHE_INT8}, int32_t{QXC_CACHE_INT4}}) {
      for (const ElementType element : {kFloat, kFloat16}) add({rotary, cache}, element, kernels, operators);
    }
  }
  return operators;
});

}  // namespace
}  // namespace qxc::ort
