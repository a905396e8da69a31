"""`Gather*`: rows of a packed matrix, as an ONNX function body."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from qxcompiler.runtime_ops.unpack import Body, WeightType, decoded_weight

__all__ = ["gather_packed"]


def gather_packed(body: Body, weight: WeightType, inputs: Mapping[str, ir.Value]) -> ir.Value:
    """Write the body of a `Gather*` operator.

    Args:
        body, weight: as `decoded_weight` takes them.
        inputs: `indices` int32 or int64, any shape; those of the weight.

    Returns:
        float32 [*indices.shape, K].
    """
    matrix = decoded_weight(body, weight, inputs)
    return body.op("Gather", [matrix, inputs["indices"]], {"axis": 0})
