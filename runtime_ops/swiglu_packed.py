"""`SwiGlu*`: Y = silu(A W_gᵀ + bias_g) * (A W_uᵀ + bias_u), gate and up in one packed W, as an ONNX function body.

The gated linear unit of "GLU Variants Improve Transformer" (Shazeer, 2020), before its last matrix.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from qxcompiler.packing.tile16 import TILE_ROWS
from qxcompiler.runtime_ops.matmul_packed import float_product
from qxcompiler.runtime_ops.unpack import WeightType, attribute

__all__ = ["swiglu_packed"]


def swiglu_packed(op: OpBuilder, weight: WeightType, A: ir.Value, bias: ir.Value, **tensors: ir.Value) -> ir.Value:
    """The function body of a `SwiGlu*` operator.

    Args:
        op, weight, A, bias, tensors: as for `MatMul*`; the tiles of W, and of `bias` [N], are gate and up in turn, so
            that N is a multiple of 32.

    Returns:
        [..., N / 2], of A's type.
    """
    product = float_product(op, weight, A, bias, **tensors)
    rows, N = op.Shape(product, end=-1), op.Reshape(attribute(op, "N"), [1])
    pairs = op.Reshape(product, op.Concat(rows, op.Div(N, 2 * TILE_ROWS), [2, TILE_ROWS], axis=0))
    gate, up = (op.Gather(pairs, tile, axis=-2) for tile in range(2))
    gated = op.Mul(op.Mul(gate, op.Sigmoid(gate)), up)
    return op.CastLike(op.Reshape(gated, op.Concat(rows, op.Div(N, 2), axis=0)), A)
