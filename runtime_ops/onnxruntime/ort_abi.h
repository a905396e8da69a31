// The part of ONNX Runtime's C ABI that this library uses. The ABI is stable and append-only, so that no header of
// ONNX Runtime is needed to build; tests/ort_slots.cpp checks it against the official header where there is one.
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtOpAttr;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtCustomOp;

namespace qxc::ort {

constexpr uint32_t kApiVersion = 17;  // the first with all that is used here

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2, kInvalidGraph = 10 };

enum ElementType : int { kAny = 0, kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6, kInt64 = 7, kFloat16 = 10 };

enum AttributeType : int { kIntAttribute = 1 };

// Functions of the table `OrtApi`, by their place in it.
using Table = void (*const*)();

template <int place, class Function>
struct Slot {
  static constexpr int kPlace = place;
  template <class... Arguments>
  static auto call(Table api, Arguments... arguments) {
    return reinterpret_cast<Function*>(api[place])(arguments...);
  }
};

using CreateStatus = Slot<0, OrtStatus*(int code, const char* message)>;
using CreateCustomOpDomain = Slot<26, OrtStatus*(const char* name, OrtCustomOpDomain**)>;
using CustomOpDomainAdd = Slot<27, OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)>;
using AddCustomOpDomain = Slot<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)>;
using GetTensorMutableData = Slot<51, OrtStatus*(OrtValue*, void**)>;
using CreateTensorTypeAndShapeInfo = Slot<57, OrtStatus*(OrtTensorTypeAndShapeInfo**)>;
using SetTensorElementType = Slot<58, OrtStatus*(OrtTensorTypeAndShapeInfo*, int)>;
using SetDimensions = Slot<59, OrtStatus*(OrtTensorTypeAndShapeInfo*, const int64_t*, size_t)>;
using GetTensorElementType = Slot<60, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int*)>;
using GetDimensionsCount = Slot<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t*)>;
using GetDimensions = Slot<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t)>;
using GetSymbolicDimensions = Slot<63, OrtStatus*(const OrtTensorTypeAndShapeInfo*, const char**, size_t)>;
using GetTensorTypeAndShape = Slot<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)>;
using KernelInfoGetAttributeFloat = Slot<85, OrtStatus*(const OrtKernelInfo*, const char*, float*)>;
using KernelInfoGetAttributeInt = Slot<86, OrtStatus*(const OrtKernelInfo*, const char*, int64_t*)>;
using KernelInfoGetAttributeString = Slot<87, OrtStatus*(const OrtKernelInfo*, const char*, char*, size_t*)>;
using KernelContextGetInput = Slot<90, OrtStatus*(const OrtKernelContext*, size_t, const OrtValue**)>;
using KernelContextGetOutput =
    Slot<91, OrtStatus*(OrtKernelContext*, size_t, const int64_t* dims, size_t rank, OrtValue**)>;
using ReleaseStatus = Slot<93, void(OrtStatus*)>;
using ReleaseTensorTypeAndShapeInfo = Slot<99, void(OrtTensorTypeAndShapeInfo*)>;
using KernelInfoGetNodeName = Slot<244, OrtStatus*(const OrtKernelInfo*, char*, size_t*)>;
using KernelInfoGetConstantInput =
    Slot<249, OrtStatus*(const OrtKernelInfo*, size_t, int* is_constant, const OrtValue**)>;
using ShapeInferContextGetInputCount = Slot<267, OrtStatus*(const OrtShapeInferContext*, size_t*)>;
using ShapeInferContextGetInputTypeShape =
    Slot<268, OrtStatus*(const OrtShapeInferContext*, size_t, OrtTensorTypeAndShapeInfo**)>;
using ShapeInferContextGetAttribute =
    Slot<269, OrtStatus*(const OrtShapeInferContext*, const char*, const OrtOpAttr**)>;
using ShapeInferContextSetOutputTypeShape =
    Slot<270, OrtStatus*(const OrtShapeInferContext*, size_t, const OrtTensorTypeAndShapeInfo*)>;
using SetSymbolicDimensions = Slot<271, OrtStatus*(OrtTensorTypeAndShapeInfo*, const char**, size_t)>;
using ReadOpAttr = Slot<272, OrtStatus*(const OrtOpAttr*, int type, void* data, size_t bytes, size_t* size)>;
using KernelContextParallelFor =
    Slot<274, OrtStatus*(const OrtKernelContext*, void (*)(void*, size_t), size_t total, size_t batches, void* data)>;

}  // namespace qxc::ort

struct OrtApiBase {
  qxc::ort::Table (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, qxc::ort::Table, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void*, OrtKernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, qxc::ort::Table, const OrtKernelInfo*, void**);
  OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  size_t (*GetMayInplace)(int**, int**);
  void (*ReleaseMayInplace)(int*, int*);
  size_t (*GetAliasMap)(int**, int**);
  void (*ReleaseAliasMap)(int*, int*);
};
