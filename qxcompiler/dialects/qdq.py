"""`qdq`: the standard's `DequantizeLinear` before each node, which compilers of other vendors read.

ONNX operator specification: float8 came with opset 19, INT4 and blocks with 21, FLOAT4E2M1 with 23, INT2 with
25.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qxcompiler.dialects.base import Dialect, scale_type
from qxcompiler.formats import STATIC, Format, Scheme
from qxcompiler.graph import Site, Weight
from qxcompiler.packing import element_bytes, element_type

__all__ = ["QDQ"]

_BLOCKS = 21
_FIRST_OPSET = {
    ir.DataType.INT8: 13,
    ir.DataType.UINT8: 13,
    ir.DataType.FLOAT8E4M3FN: 19,
    ir.DataType.FLOAT8E5M2: 19,
    ir.DataType.INT4: 21,
    ir.DataType.UINT4: 21,
    ir.DataType.FLOAT4E2M1: 23,
    ir.DataType.INT2: 25,
    ir.DataType.UINT2: 25,
}
_FLOAT16_SCALES = 19


@dataclass(frozen=True)
class _Qdq(Dialect):
    def lacks(self, scheme: Scheme) -> tuple[str, str] | None:
        fmt = scheme.format
        if element_type(fmt) is None:
            return (
                f"has no type in dialect qdq for weights as {fmt.name}",
                "choose int2, int4, int8, fp8, mxfp4, mxfp8 or mxint8, or dialect qxc",
            )
        if fmt.rotated:
            return f"has no operator in dialect qdq that rotates activations, as {fmt.name} needs it", "leave out the h"
        if scheme.activation == "a8":
            return (
                "has no operator in dialect qdq that rounds activations as a8",
                "choose a16 or a32, a8s with int8, or dialect qxc",
            )
        if scheme.activation == STATIC and fmt.name != "int8":
            return f"multiplies static activations (a8s) in dialect qdq with int8 alone, not {fmt.name}", "choose int8"
        return None

    def misfits(self, site: Site, scheme: Scheme) -> str | None:
        if site.kind == "convolution" and scheme.format.groups(site.in_features) > 1:
            return "the filters of a convolution take a scale each, such as int8, not groups"
        if scheme.activation == STATIC and site.in_subgraph:
            return "static activations are calibrated in the main graph alone"
        if scheme.activation == STATIC and site.operand_dtype != ir.DataType.FLOAT:
            return f"static activations need a model in float32, not {site.operand_dtype}"
        return None

    def weight_bytes(self, fmt: Format, weight: Weight) -> int:
        return element_bytes(fmt, weight.out_features, weight.in_features, scale_type(fmt, weight).bitwidth // 8)

    def opset(self, site: Site, scheme: Scheme) -> int:
        dtype = element_type(scheme.format)
        assert dtype is not None
        needed = [_FIRST_OPSET[dtype]]
        # a scale a row takes no blocks, but rows that were looked up lie anywhere
        if not self.is_per_row(scheme.format, site.in_features) or self.looks_up_codes(site, scheme):
            needed.append(_BLOCKS)
        if scale_type(scheme.format, site.weight) == ir.DataType.FLOAT16:
            needed.append(_FLOAT16_SCALES)
        return max(needed)

    def operators(self, site: Site) -> tuple[str, ...]:
        return (site.node.op_type, "DequantizeLinear")

    def runs(self, fmt: Format) -> bool:
        return element_type(fmt) != ir.DataType.FLOAT4E2M1  # onnxruntime 1.31 has no kernel

    def is_per_row(self, fmt: Format, in_features: int) -> bool:
        """Whether scales are one a row, without blocks, which opset 13 knows.

        2 bits always have blocks: onnxruntime (1.31) would move a `Transpose` to UINT2 codes, and fail.
        """
        return fmt.groups(in_features) == 1 and fmt.bits != 2

    def looks_up_codes(self, site: Site, scheme: Scheme) -> bool:
        """Whether a `Gather` reads codes instead of a whole table decoded; it takes no smaller types, nor float8.

        None with zero points: rows that go right into a product, whose weight has some, make onnxruntime (1.31) put
        `MatMulIntegerToFloat` there, which fails on their blocks.
        """
        return site.kind == "embedding" and element_type(scheme.format) == ir.DataType.INT8


QDQ = _Qdq("qdq", every_kind=True)
