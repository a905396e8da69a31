"""`RMSNorm` and `LayerNorm`, of one tensor or of the sum of two, as ONNX function bodies."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from qxcompiler.runtime_ops.unpack import as_float, attribute

__all__ = ["NORM_ATTRIBUTES", "NORM_TYPES", "NormType"]

NORM_ATTRIBUTES = {"epsilon": ir.AttributeType.FLOAT}


@dataclass(frozen=True)
class NormType:
    """Which norm of what.

    Attributes:
        centered: subtracts each row's mean first, and adds a bias at the end.
        skip: is of the sum of two tensors, and gives that too.
    """

    centered: bool
    skip: bool

    @property
    def name(self) -> str:
        """The operator: `SkipRMSNorm`."""
        return f"{'Skip' if self.skip else ''}{'LayerNorm' if self.centered else 'RMSNorm'}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """In the operator's order."""
        return ("X", *(["skip"] if self.skip else []), "gain", *(["bias"] if self.centered else []))

    @property
    def outputs(self) -> tuple[str, ...]:
        """In the operator's order."""
        return ("Y", "sum") if self.skip else ("Y",)

    def write_body(self, op: OpBuilder, *values: ir.Value) -> list[ir.Value]:
        """The function body: S / sqrt(mean(S^2) + epsilon) * gain + bias over the last axis, in float32.

        Args:
            op: writes the nodes.
            values: `inputs`: X and skip float32 or float16 [..., N], N at least 1; gain and bias float32 [N].

        Returns:
            Y, of X's shape and type, and with a skip the sum S = X + skip, which is rounded to that type first.
        """
        inputs = dict(zip(self.inputs, values, strict=True))
        total = op.Add(inputs["X"], inputs["skip"]) if self.skip else inputs["X"]
        S = as_float(op, total)
        if self.centered:
            S = op.Sub(S, op.ReduceMean(S, [-1]))
        square = op.ReduceMean(op.Mul(S, S), [-1])
        deviation = op.Sqrt(op.Add(square, attribute(op, "epsilon", ir.AttributeType.FLOAT)))
        Y = op.Mul(op.Div(S, deviation), inputs["gain"])
        if self.centered:
            Y = op.Add(Y, inputs["bias"])
        return [op.CastLike(Y, inputs["X"]), *([total] if self.skip else [])]


NORM_TYPES = [NormType(centered, skip) for skip in (False, True) for centered in (False, True)]
