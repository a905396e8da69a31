// The library's one entry point: puts every operator into the domain `qxc` of a session's options.
#include <cstdlib>
#include <string>
#include <vector>

#include "operator.h"

namespace qxc::ort {
namespace {

struct CustomOp : OrtCustomOp {
  explicit CustomOp(Operator made);
  Operator op;
};

const Operator& self(const OrtCustomOp* op) { return static_cast<const CustomOp*>(op)->op; }

// A kernel, and the table of the runtime that made it.
struct Instance {
  Table api;
  std::unique_ptr<Kernel> kernel;
};

OrtStatus* create(const OrtCustomOp* op, Table api, const OrtKernelInfo* info, void** instance) {
  return as_status(api, [&] { *instance = new Instance{api, self(op).make_kernel(KernelInfo(api, info))}; });
}

OrtStatus* compute(void* instance, OrtKernelContext* context) {
  const auto& self = *static_cast<const Instance*>(instance);
  return as_status(self.api, [&] { self.kernel->compute(KernelContext(self.api, context)); });
}

Table g_api;  // of the runtime, which shape inference is not given

OrtStatus* infer_shapes(const OrtCustomOp* op, OrtShapeInferContext* context) {
  return as_status(g_api, [&] { self(op).infer_shapes(ShapeContext(g_api, context)); });
}

CustomOp::CustomOp(Operator made) : OrtCustomOp{}, op(std::move(made)) {
  version = kApiVersion;
  GetName = [](const OrtCustomOp* op) { return self(op).name.c_str(); };
  GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // the CPU
  GetInputType = [](const OrtCustomOp* op, size_t i) { return static_cast<int>(self(op).inputs[i]); };
  GetInputTypeCount = [](const OrtCustomOp* op) { return self(op).inputs.size(); };
  GetOutputType = [](const OrtCustomOp* op, size_t i) { return static_cast<int>(self(op).outputs[i]); };
  GetOutputTypeCount = [](const OrtCustomOp* op) { return self(op).outputs.size(); };
  GetInputCharacteristic = GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return 0; };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
  GetVariadicInputMinArity = GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  GetVariadicInputHomogeneity = GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  GetStartVersion = GetEndVersion = [](const OrtCustomOp*) { return 1; };
  CreateKernelV2 = create;
  KernelComputeV2 = compute;
  KernelDestroy = [](void* instance) { delete static_cast<Instance*>(instance); };
  if (op.infer_shapes) InferOutputShapeFn = infer_shapes;
}

OrtCustomOpDomain* make_domain(Table api, const qxc_kernels& kernels) {
  g_api = api;
  // never freed: sessions point to the operators until the process ends
  auto& operators = *new std::vector<CustomOp>;
  for (const auto make : Registration::all()) {
    for (Operator& op : make(kernels)) operators.emplace_back(std::move(op));
  }
  OrtCustomOpDomain* domain = nullptr;
  check(CreateCustomOpDomain::call(api, "qxc", &domain));
  for (const CustomOp& op : operators) {
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
