"""`Gather*`: rows of a packed matrix, as an ONNX function body."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from qxcompiler.runtime_ops.unpack import WeightType, decoded_weight

__all__ = ["gather_packed"]


def gather_packed(op: OpBuilder, weight: WeightType, indices: ir.Value, **tensors: ir.Value) -> ir.Value:
    """The function body of a `Gather*` operator.

    Args:
        op, weight, tensors: as `decoded_weight` takes them.
        indices: int32 or int64, any shape.

    Returns:
        float32 [*indices.shape, K].
    """
    return op.Gather(decoded_weight(op, weight, **tensors), indices, axis=0)
