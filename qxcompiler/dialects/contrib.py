"""`contrib`: onnxruntime's `MatMulNBits` and `GatherBlockQuantized`, of the domain `com.microsoft`."""

from __future__ import annotations

from dataclasses import dataclass

from qxcompiler.dialects.base import Dialect, scale_type
from qxcompiler.formats import STATIC, Format, Scheme
from qxcompiler.graph import Site, Weight
from qxcompiler.packing import nbits_bytes

__all__ = ["CONTRIB"]

_BITS = (2, 4, 8)


@dataclass(frozen=True)
class _Contrib(Dialect):
    def lacks(self, scheme: Scheme) -> tuple[str, str] | None:
        fmt = scheme.format
        if fmt.code_type not in ("Int", "UInt") or fmt.bits not in _BITS or fmt.group_size is None:
            problem = f"has no operator in dialect contrib for weights as {fmt.name}"
            return problem, "choose int2, int4 or int8 in groups, such as int4g32, or dialect qxc"
        if scheme.activation == STATIC:
            problem = "has no operator in dialect contrib for static activations (a8s)"
            return problem, "choose a8, or a target of dialect qdq"
        if fmt.rotated:
            problem = f"has no operator in dialect contrib that rotates activations, as {fmt.name} needs it"
            return problem, "leave out the h"
        return None

    def weight_bytes(self, fmt: Format, weight: Weight) -> int:
        return nbits_bytes(fmt, weight.out_features, weight.in_features, scale_type(fmt, weight).bitwidth // 8)

    def operators(self, site: Site) -> tuple[str, ...]:
        return ("GatherBlockQuantized" if site.kind == "embedding" else "MatMulNBits",)


CONTRIB = _Contrib("contrib")
