"""What every dialect says of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import onnx_ir as ir

from qxcompiler.formats import FLOAT16, Format, Scheme
from qxcompiler.graph import Site, Weight

__all__ = ["Dialect", "scale_type"]


@dataclass(frozen=True)
class Dialect(ABC):
    """A way to write quantized weights and what computes with them.

    Attributes:
        name: as a target's descriptor says it.
        library: whether its operators are ours, with function bodies and a library.
        every_kind: whether it holds the weights of every kind of site: of convolutions that no matrix product computes,
            and of recurrent layers.
    """

    name: str
    library: bool = False
    every_kind: bool = False

    @abstractmethod
    def lacks(self, scheme: Scheme) -> tuple[str, str] | None:
        """Why a scheme cannot be written, and what can; None where it can."""

    def misfits(self, site: Site, scheme: Scheme) -> str | None:
        """Why a scheme that it does not lack cannot be written at a site; None where it can."""
        return None

    @abstractmethod
    def weight_bytes(self, fmt: Format, weight: Weight) -> int:
        """What a weight takes: codes, scales, zero points, codebooks and padding."""

    def opset(self, site: Site, scheme: Scheme) -> int:
        """The first version of the standard operators that has what a site becomes, of those that are compiled."""
        return 0

    def operators(self, site: Site) -> tuple[str, ...]:
        """The standard operators that compute what the site's node did, as a target may lack them."""
        return ()

    def runs(self, fmt: Format) -> bool:
        """Whether onnxruntime computes with a format on the CPU, so that a compiled model can be verified."""
        return True


def scale_type(fmt: Format, weight: Weight) -> ir.DataType:
    """The type of scales that is the result's as well: float16 where the graph computes in it and they are no finer."""
    half = weight.dtype == ir.DataType.FLOAT16 and fmt.scale_type is FLOAT16
    return ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
