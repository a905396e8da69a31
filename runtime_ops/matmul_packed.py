"""`MatMul*`: Y = A Wᵀ + bias with a packed W, as an ONNX function body."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from qxcompiler.runtime_ops.unpack import Body, WeightType, decoded_weight

__all__ = ["float_product", "matmul_packed"]

_LARGEST_FLOAT = 3.4028234663852886e38
_LARGEST_INT8 = 127.0


def matmul_packed(body: Body, weight: WeightType, inputs: Mapping[str, ir.Value]) -> ir.Value:
    """Write the body of a `MatMul*` operator.

    Args:
        body, weight: as `decoded_weight` takes them.
        inputs: `A` float32 or float16 [..., K]; those of the weight; `bias` float32 [N] or [1].

    Returns:
        [..., N], of A's type.
    """
    return body.op("CastLike", [float_product(body, weight, inputs), inputs["A"]])


def float_product(body: Body, weight: WeightType, inputs: Mapping[str, ir.Value]) -> ir.Value:
    """The same as float32 [..., N], whatever A's type."""
    matrix = decoded_weight(body, weight, inputs)
    a = _as_activation(body, body.cast(inputs["A"], ir.DataType.FLOAT))
    product = body.op("MatMul", [a, body.op("Transpose", [matrix], {"perm": [1, 0]})])
    return body.op("Add", [product, inputs["bias"]])


def _as_activation(body: Body, a: ir.Value) -> ir.Value:
    """A rounded to what `activation` keeps of it: a row of a8 to 8-bit integers times `max|a| / 127`."""

    def scalar(value: float) -> ir.Value:
        return body.constant(value, ir.DataType.FLOAT)

    magnitude = body.op("Abs", [a])
    last = body.constant([-1])
    finite = body.cast(body.op("LessOrEqual", [magnitude, scalar(_LARGEST_FLOAT)]), ir.DataType.FLOAT)
    row_is_finite = body.cast(body.op("ReduceMin", [finite, last], {"keepdims": 1}), ir.DataType.BOOL)

    scale = body.op("Div", [body.op("ReduceMax", [magnitude, last], {"keepdims": 1}), scalar(_LARGEST_INT8)])
    divisor = body.op("Where", [body.op("Greater", [scale, scalar(0.0)]), scale, scalar(1.0)])
    nearest = body.op("Round", [body.op("Div", [a, divisor])])
    q = body.op("Clip", [nearest, scalar(-_LARGEST_INT8), scalar(_LARGEST_INT8)])
    rounds = body.op("And", [row_is_finite, _is_a8(body)])
    return body.op("Where", [rounds, body.op("Mul", [q, scale]), a])


def _is_a8(body: Body) -> ir.Value:
    """bool [1]: before opset 19 no operator compares strings, but `Unique` counts them."""
    name = body.op("Reshape", [body.attribute("activation"), body.constant([1])])
    a8 = body.op("Constant", [], {"value_strings": ["a8"]})
    distinct = body.op("Unique", [body.op("Concat", [name, a8], {"axis": 0})])
    return body.op("Equal", [body.op("Shape", [distinct]), body.constant([1])])
