"""A scheme: a weight format and an activation precision."""

from __future__ import annotations

from dataclasses import dataclass

from qxcompiler.errors import UsageError
from qxcompiler.formats.base import Format
from qxcompiler.formats.registry import parse_format

__all__ = ["ACTIVATIONS", "KERNEL_ACTIVATIONS", "STATIC", "Scheme", "check_activation"]

KERNEL_ACTIVATIONS = ("a32", "a16", "a8")  # of the packed operators
STATIC = "a8s"
ACTIVATIONS = (*KERNEL_ACTIVATIONS, STATIC)


@dataclass(frozen=True)
class Scheme:
    """How a site computes: `lut3g128/a16`; an embedding multiplies nothing and has a format only, `int8g128`.

    Attributes:
        format: of the weight.
        activation: `a32` (float), `a16` (within 5e-5 of float), `a8` (int8, a scale a token, computed at run time) or
            `a8s` (int8, a scale a tensor, calibrated); None for an embedding.
    """

    format: Format
    activation: str | None

    def __str__(self) -> str:
        return self.format.name if self.activation is None else f"{self.format.name}/{self.activation}"

    @classmethod
    def parse(cls, spec: str) -> Scheme:
        """Read `FORMAT/ACTIVATION` or `FORMAT`.

        Raises:
            UsageError: there is no such format or activation precision.
        """
        name, slash, activation = spec.partition("/")
        return cls(parse_format(name), check_activation(activation) if slash else None)


def check_activation(name: str) -> str:
    """Return the name of an activation precision.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in ACTIVATIONS:
        raise UsageError(repr(name), "not an activation precision", f"choose one of {', '.join(ACTIVATIONS)}")
    return name
