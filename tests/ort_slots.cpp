// Compiles only where onnxruntime/ort_abi.h says of the C ABI what ONNX Runtime's own header says.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace official {
#include <onnxruntime_c_api.h>
}

#include "../runtime_ops/onnxruntime/ort_abi.h"

#define QXC_SAME_SLOT(slot, name) \
  static_assert(offsetof(official::OrtApi, name) == qxc::ort::slot::kPlace * sizeof(void*), #name)

QXC_SAME_SLOT(CreateStatus, CreateStatus);
QXC_SAME_SLOT(CreateCustomOpDomain, CreateCustomOpDomain);
QXC_SAME_SLOT(CustomOpDomainAdd, CustomOpDomain_Add);
QXC_SAME_SLOT(AddCustomOpDomain, AddCustomOpDomain);
QXC_SAME_SLOT(GetTensorMutableData, GetTensorMutableData);
QXC_SAME_SLOT(CreateTensorTypeAndShapeInfo, CreateTensorTypeAndShapeInfo);
QXC_SAME_SLOT(SetTensorElementType, SetTensorElementType);
QXC_SAME_SLOT(SetDimensions, SetDimensions);
QXC_SAME_SLOT(GetTensorElementType, GetTensorElementType);
QXC_SAME_SLOT(GetDimensionsCount, GetDimensionsCount);
QXC_SAME_SLOT(GetDimensions, GetDimensions);
QXC_SAME_SLOT(GetSymbolicDimensions, GetSymbolicDimensions);
QXC_SAME_SLOT(GetTensorTypeAndShape, GetTensorTypeAndShape);
QXC_SAME_SLOT(KernelInfoGetAttributeFloat, KernelInfoGetAttribute_float);
QXC_SAME_SLOT(KernelInfoGetAttributeInt, KernelInfoGetAttribute_int64);
QXC_SAME_SLOT(KernelInfoGetAttributeString, KernelInfoGetAttribute_string);
QXC_SAME_SLOT(KernelContextGetInput, KernelContext_GetInput);
QXC_SAME_SLOT(KernelContextGetOutput, KernelContext_GetOutput);
QXC_SAME_SLOT(ReleaseStatus, ReleaseStatus);
QXC_SAME_SLOT(ReleaseTensorTypeAndShapeInfo, ReleaseTensorTypeAndShapeInfo);
QXC_SAME_SLOT(KernelInfoGetNodeName, KernelInfo_GetNodeName);
QXC_SAME_SLOT(KernelInfoGetConstantInput, KernelInfoGetConstantInput_tensor);
QXC_SAME_SLOT(ShapeInferContextGetInputCount, ShapeInferContext_GetInputCount);
QXC_SAME_SLOT(ShapeInferContextGetInputTypeShape, ShapeInferContext_GetInputTypeShape);
QXC_SAME_SLOT(ShapeInferContextGetAttribute, ShapeInferContext_GetAttribute);
QXC_SAME_SLOT(ShapeInferContextSetOutputTypeShape, ShapeInferContext_SetOutputTypeShape);
QXC_SAME_SLOT(SetSymbolicDimensions, SetSymbolicDimensions);
QXC_SAME_SLOT(ReadOpAttr, ReadOpAttr);
QXC_SAME_SLOT(KernelContextParallelFor, KernelContext_ParallelFor);

#define QXC_SAME_MEMBER(name) static_assert(offsetof(official::OrtCustomOp, name) == offsetof(OrtCustomOp, name), #name)

QXC_SAME_MEMBER(version);
QXC_SAME_MEMBER(GetName);
QXC_SAME_MEMBER(GetExecutionProviderType);
QXC_SAME_MEMBER(GetInputType);
QXC_SAME_MEMBER(GetInputTypeCount);
QXC_SAME_MEMBER(GetOutputType);
QXC_SAME_MEMBER(GetOutputTypeCount);
QXC_SAME_MEMBER(KernelDestroy);
QXC_SAME_MEMBER(GetInputCharacteristic);
QXC_SAME_MEMBER(GetOutputCharacteristic);
QXC_SAME_MEMBER(GetInputMemoryType);
QXC_SAME_MEMBER(GetVariadicInputMinArity);
QXC_SAME_MEMBER(GetVariadicInputHomogeneity);
QXC_SAME_MEMBER(GetVariadicOutputMinArity);
QXC_SAME_MEMBER(GetVariadicOutputHomogeneity);
QXC_SAME_MEMBER(CreateKernelV2);
QXC_SAME_MEMBER(KernelComputeV2);
QXC_SAME_MEMBER(InferOutputShapeFn);
QXC_SAME_MEMBER(GetStartVersion);
QXC_SAME_MEMBER(GetEndVersion);

static_assert(qxc::ort::kIntAttribute == int{official::ORT_OP_ATTR_INT});
static_assert(qxc::ort::kFloat == int{official::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT});
static_assert(qxc::ort::kUint8 == int{official::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8});
static_assert(qxc::ort::kInt8 == int{official::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8});
static_assert(qxc::ort::kInt32 == int{official::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32});
static_assert(qxc::ort::kInt64 == int{official::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64});
static_assert(qxc::ort::kFloat16 == int{official::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16});
