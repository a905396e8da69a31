"""`MatMul*`: Y = A Wᵀ + bias with a packed W, as an ONNX function body."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from qxcompiler.runtime_ops.unpack import WeightType, as_float, attribute, decoded_weight

__all__ = ["float_product", "matmul_packed"]

_LARGEST_FLOAT = 3.4028234663852886e38
_LARGEST_INT8 = 127.0


def matmul_packed(op: OpBuilder, weight: WeightType, A: ir.Value, bias: ir.Value, **tensors: ir.Value) -> ir.Value:
    """The function body of a `MatMul*` operator.

    Args:
        op, weight, tensors: as `decoded_weight` takes them.
        A: float32 or float16 [..., K].
        bias: float32 [N] or [1].

    Returns:
        [..., N], of A's type.
    """
    return op.CastLike(float_product(op, weight, A, bias, **tensors), A)


def float_product(op: OpBuilder, weight: WeightType, A: ir.Value, bias: ir.Value, **tensors: ir.Value) -> ir.Value:
    """The same as float32 [..., N], whatever A's type."""
    bias.dtype = ir.DataType.FLOAT
    W = decoded_weight(op, weight, **tensors)
    return op.Add(op.MatMul(_as_activation(op, as_float(op, A)), op.Transpose(W, perm=[1, 0])), bias)


def _as_activation(op: OpBuilder, a: ir.Value) -> ir.Value:
    """A rounded to what `activation` keeps of it: a row of a8 to 8-bit integers times `max|a| / 127`."""
    magnitude = op.Abs(a)
    finite = as_float(op, op.LessOrEqual(magnitude, _LARGEST_FLOAT))
    row_is_finite = op.Cast(op.ReduceMin(finite, [-1], keepdims=1), to=ir.DataType.BOOL)

    scale = op.Div(op.ReduceMax(magnitude, [-1], keepdims=1), _LARGEST_INT8)
    divisor = op.Where(op.Greater(scale, 0.0), scale, 1.0)
    q = op.Clip(op.Round(op.Div(a, divisor)), -_LARGEST_INT8, _LARGEST_INT8)
    return op.Where(op.And(row_is_finite, _is_a8(op)), op.Mul(q, scale), a)


def _is_a8(op: OpBuilder) -> ir.Value:
    """bool [1]: before opset 19 no operator compares strings, but `Unique` counts them."""
    name = op.Reshape(attribute(op, "activation", ir.AttributeType.STRING), [1])
    distinct = op.Unique(op.Concat(name, op.Constant(value_strings=["a8"]), axis=0))
    return op.Equal(op.Shape(distinct), [1])
