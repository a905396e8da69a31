"""`Gather*`: rows of a packed matrix, as an ONNX function body."""

from __future__ import annotations

import onnx_ir as ir

from qxcompiler.runtime_ops.unpack import Body, decoded_weight

__all__ = ["gather_packed"]


def gather_packed(body: Body, family: str, bits: int, inputs: dict[str, ir.Value]) -> ir.Value:
    """Write the body of a `Gather*` operator.

    Args:
        body, family, bits: as `decoded_weight` takes them.
        inputs: `indices` int32 or int64, any shape; `packed`, `scales`, `zero_points` or `codebook` where the format
            has them.

    Returns:
        float32 [*indices.shape, K].
    """
    weight = decoded_weight(body, family, bits, inputs)
    return body.op("Gather", [weight, inputs["indices"]], {"axis": 0})
