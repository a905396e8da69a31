"""`qxc`: the packed operators of this project, which take every format."""

from __future__ import annotations

from dataclasses import dataclass

from qxcompiler.dialects.base import Dialect
from qxcompiler.formats import STATIC, Format, Scheme
from qxcompiler.graph import Weight
from qxcompiler.packing import packed_bytes

__all__ = ["QXC"]


@dataclass(frozen=True)
class _Qxc(Dialect):
    def lacks(self, scheme: Scheme) -> tuple[str, str] | None:
        if scheme.activation == STATIC:
            return (
                "has no operator in dialect qxc for static activations (a8s)",
                "choose a8, or a target of dialect qdq",
            )
        return None

    def weight_bytes(self, fmt: Format, weight: Weight) -> int:
        return packed_bytes(fmt, weight.out_features, weight.in_features)


QXC = _Qxc("qxc", library=True)
