// The library's one entry point: puts every operator into the domain `qxc` of a session's options.
#include <array>
#include <cstdlib>
#include <string>
#include <vector>

#include "gather_packed.h"
#include "matmul_packed.h"

namespace qxc::ort {
namespace {

struct Operator : OrtCustomOp {
  std::string name;
  std::vector<ElementType> inputs;
  ElementType output;
  WeightFormat format;
  const qxc_kernels* kernels;
};

const Operator& self(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

// A kernel, and the table of the runtime that made it.
template <class Kernel>
struct Instance {
  Table api;
  const Kernel kernel;
};

template <class Kernel>
OrtStatus* create(const OrtCustomOp* op, Table api, const OrtKernelInfo* info, void** instance) {
  return as_status(api, [&] {
    *instance = new Instance<Kernel>{api, Kernel(self(op).format, *self(op).kernels, KernelInfo(api, info))};
  });
}

template <class Kernel>
OrtStatus* compute(void* instance, OrtKernelContext* context) {
  const auto& self = *static_cast<const Instance<Kernel>*>(instance);
  return as_status(self.api, [&] { self.kernel.compute(KernelContext(self.api, context)); });
}

template <class Kernel>
Operator make_operator(std::string name, std::vector<ElementType> inputs, ElementType output, WeightFormat format) {
  Operator op{};
  op.version = kApiVersion;
  op.name = std::move(name);
  op.inputs = std::move(inputs);
  op.output = output;
  op.format = format;
  op.GetName = [](const OrtCustomOp* op) { return self(op).name.c_str(); };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // the CPU
  op.GetInputType = [](const OrtCustomOp* op, size_t i) { return static_cast<int>(self(op).inputs[i]); };
  op.GetInputTypeCount = [](const OrtCustomOp* op) { return self(op).inputs.size(); };
  op.GetOutputType = [](const OrtCustomOp* op, size_t) { return static_cast<int>(self(op).output); };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetInputCharacteristic = op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return 0; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
  op.GetVariadicInputMinArity = op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetStartVersion = op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = create<Kernel>;
  op.KernelComputeV2 = compute<Kernel>;
  op.KernelDestroy = [](void* instance) { delete static_cast<Instance<Kernel>*>(instance); };
  return op;
}

std::vector<Operator> make_operators() {
  struct Family {
    const char* name;
    qxc_code code;
    std::vector<int> bits;
    std::vector<ElementType> tensors;
  };
  const Family families[] = {
      {"Int", QXC_INT, {2, 3, 4, 5, 6, 8}, {kUint8, kFloat16}},
      {"UInt", QXC_UINT, {2, 3, 4, 5, 6, 8}, {kUint8, kFloat16, kUint8}},
      {"Lut", QXC_LUT, {2, 3, 4}, {kUint8, kFloat16, kInt8}},
      {"MxFp", QXC_MXFP4, {4}, {kUint8, kUint8}},
  };
  std::vector<Operator> operators;
  for (const Family& family : families) {
    for (const int bits : family.bits) {
      const std::string suffix = family.name + std::to_string(bits);
      const WeightFormat format{family.code, bits};
      std::vector<ElementType> gather{kAny};
      gather.insert(gather.end(), family.tensors.begin(), family.tensors.end());
      operators.push_back(make_operator<GatherPacked>("Gather" + suffix, std::move(gather), kFloat, format));
      for (const ElementType element : {kFloat, kFloat16}) {
        std::vector<ElementType> matmul{element};
        matmul.insert(matmul.end(), family.tensors.begin(), family.tensors.end());
        matmul.push_back(kFloat);
        operators.push_back(make_operator<MatMulPacked>("MatMul" + suffix, matmul, element, format));
        operators.push_back(make_operator<SwiGluPacked>("SwiGlu" + suffix, std::move(matmul), element, format));
      }
    }
  }
  return operators;
}

OrtCustomOpDomain* make_domain(Table api, const qxc_kernels& kernels) {
  // never freed: sessions point to the operators until the process ends
  auto& operators = *new std::vector<Operator>(make_operators());
  OrtCustomOpDomain* domain = nullptr;
  check(CreateCustomOpDomain::call(api, "qxc", &domain));
  for (Operator& op : operators) {
    op.kernels = &kernels;
    check(CustomOpDomainAdd::call(api, domain, static_cast<const OrtCustomOp*>(&op)));
  }
  return domain;
}

const qxc_kernels& select_kernels() {
  const char* wanted = std::getenv("QXC_ISA");
  const qxc_kernels* kernels = qxc_kernels_for(wanted);
  if (!kernels) {
    throw Error(kInvalidArgument, std::string("QXC_ISA=") + wanted +
                                      ": no such instruction set, or this processor or this build lacks it");
  }
  return *kernels;
}

OrtStatus* register_operators(Table api, OrtSessionOptions* options) {
  return as_status(api, [&] {
    static OrtCustomOpDomain* domain = make_domain(api, select_kernels());
    check(AddCustomOpDomain::call(api, options, domain));
  });
}

}  // namespace
}  // namespace qxc::ort

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  using namespace qxc::ort;
  const Table api = base->GetApi(kApiVersion);
  if (!api) {
    const Table oldest = base->GetApi(1);  // every runtime has it
    if (!oldest) return nullptr;
    return as_status(oldest, [&] {
      throw Error(kFail, std::string("the qxc operators need ONNX Runtime 1.17 or later, and this is ") +
                             base->GetVersionString());
    });
  }
  return register_operators(api, options);
}
