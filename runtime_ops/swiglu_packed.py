"""`SwiGlu*`: Y = silu(A W_gᵀ + bias_g) * (A W_uᵀ + bias_u), gate and up in one packed W, as an ONNX function body.

The gated linear unit of "GLU Variants Improve Transformer" (Shazeer, 2020), before its last matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from qxcompiler.packing.tile16 import TILE_ROWS
from qxcompiler.runtime_ops.matmul_packed import float_product
from qxcompiler.runtime_ops.unpack import Body, WeightType

__all__ = ["swiglu_packed"]


def swiglu_packed(body: Body, weight: WeightType, inputs: Mapping[str, ir.Value]) -> ir.Value:
    """Write the body of a `SwiGlu*` operator.

    Args:
        body, weight: as `decoded_weight` takes them.
        inputs: as for `MatMul*`; the tiles of W, and of `bias` [N], are gate and up in turn, so that N is a multiple
            of 32.

    Returns:
        [..., N / 2], of A's type.
    """
    product = float_product(body, weight, inputs)
    rows = body.op("Shape", [product], {"end": -1})

    def shaped(value: ir.Value, divisor: int, *rest: int) -> ir.Value:
        """[*rows, N / divisor, *rest]."""
        size = body.op("Div", [body.attribute_list("N"), body.constant([divisor])])
        parts: Sequence[ir.Value] = [rows, size, *([body.constant(rest)] if rest else [])]
        return body.op("Reshape", [value, body.op("Concat", parts, {"axis": 0})])

    pairs = shaped(product, 2 * TILE_ROWS, 2, TILE_ROWS)
    gate, up = (body.op("Gather", [pairs, body.constant(tile)], {"axis": -2}) for tile in range(2))
    silu = body.op("Mul", [gate, body.op("Sigmoid", [gate])])
    return body.op("CastLike", [shaped(body.op("Mul", [silu, up]), 2), inputs["A"]])
