"""Microscaling formats: groups of 32 small floats or integers (the specification's blocks) that share a power of two.

OCP Microscaling Formats (MX) Specification, version 1.0: elements (section 5.3), scales E8M0 (section 5.4.1),
conversion (section 6.3).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from qxcompiler.formats.base import Format, Grid
from qxcompiler.formats.floats import E2M1, SMALL_FLOATS, FloatGrid, SmallFloat
from qxcompiler.formats.integer import IntegerGrid
from qxcompiler.formats.scales import E8M0, ScaleType

__all__ = ["MX_FORMATS", "MxFloatFormat", "MxFormat", "MxInt8Format"]

_BIAS = 127
_GROUP_SIZE = 32


@dataclass(frozen=True)
class MxFormat(Format):
    """Groups of 32 along K, with a power-of-two scale a group (E8M0)."""

    group_size: int | None = _GROUP_SIZE
    scale_type: ScaleType = E8M0

    @property
    @abstractmethod
    def largest_exponent(self) -> int:
        """That of the largest element: 2 of 6 = 1.5 * 2**2."""

    @property
    @abstractmethod
    def scale_exponents(self) -> tuple[int, int]:
        """The smallest and the largest of a scale with which every value is a normal, finite float32."""

    @abstractmethod
    def with_scales(self, in_features: int, scales: torch.Tensor) -> Grid:
        """The grid that has these scales, float32 [N, G]."""

    def fit(self, weight: torch.Tensor, importance: torch.Tensor) -> Grid:
        """The specification's exponent, floor(log2(max|w|)) less that of the largest element, or a neighbour where it
        loses less.

        The one above does not saturate what lies beyond the largest element; the one below saturates more, and halves
        the steps.
        """
        K = weight.shape[1]
        exponents = torch.frexp(self.grouped(weight).abs().amax(-1)).exponent - 1 - self.largest_exponent
        lowest, highest = self.scale_exponents
        exponents.clamp_(lowest + 1, highest - 1)  # whose neighbours may be taken
        # in units of the specification's scale, where no square overflows or underflows
        normalised = weight / self.with_scales(K, _power_of_two(exponents)).column_scales(slice(None))

        best = exponents
        best_error = torch.full_like(exponents, torch.inf, dtype=weight.dtype)
        for step in (0, 1, -1):
            grid = self.with_scales(K, torch.full_like(best_error, 2.0**step))
            decoded = grid.decode(grid.encode(normalised, slice(None)), slice(None))
            error = self.grouped((decoded - normalised).square_() * importance).sum(-1)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best = torch.where(better, exponents + step, best)
        return self.with_scales(K, _power_of_two(best))

    def codebook_rows(self, out_features: int) -> int:
        """None are stored: values are the specification's."""
        return 0

    def grid(self, in_features: int, stored: Mapping[str, torch.Tensor]) -> Grid:
        """From stored bytes of E8M0."""
        return self.with_scales(in_features, self.scale_type.values(stored))


@dataclass(frozen=True)
class MxFloatFormat(MxFormat):
    """Small floats: `mxfp4` (E2M1), `mxfp6e2m3`, `mxfp6e3m2`, `mxfp8e4m3`, `mxfp8e5m2`.

    Attributes:
        element: which.
    """

    bits: int = E2M1.bits
    element: SmallFloat = E2M1

    @property
    def name(self) -> str:
        """Such as `mxfp8e4m3`; of 4 bits there is one kind of element only."""
        kind = "" if self.bits == E2M1.bits else self.element.name.lower()
        return f"mxfp{self.bits}{kind}{'h' if self.rotated else ''}"

    @property
    def code_type(self) -> str:
        """`Fp` (E2M1), `E2M3`, `E3M2`, `E4M3` or `E5M2`."""
        return self.element.code_type

    @property
    def largest_exponent(self) -> int:
        """Of 6, 7.5, 28, 448 or 57344."""
        return _exponent(self.element.magnitudes[-1])

    @property
    def scale_exponents(self) -> tuple[int, int]:
        """Such as -125 and 125 for MXFP4."""
        return 1 - _BIAS - _exponent(self.element.magnitudes[1]), _BIAS - self.largest_exponent

    def with_scales(self, in_features: int, scales: torch.Tensor) -> FloatGrid:
        """The grid that has these scales, float32 [N, G]."""
        return FloatGrid(self, in_features, scales, self.element)


@dataclass(frozen=True)
class MxInt8Format(MxFormat):
    """8-bit integers: `mxint8`.

    The specification's element counts 64ths; here it counts ones, and a scale is a 64th of the specification's.
    """

    bits: int = 8

    @property
    def name(self) -> str:
        """`mxint8`."""
        return f"mxint8{'h' if self.rotated else ''}"

    @property
    def code_type(self) -> str:
        """`Int`."""
        return "Int"

    @property
    def largest_exponent(self) -> int:
        """Of 127."""
        return 6

    @property
    def scale_exponents(self) -> tuple[int, int]:
        """The smallest element is 1, and the one of largest magnitude -128."""
        return 1 - _BIAS, _BIAS - 7

    def with_scales(self, in_features: int, scales: torch.Tensor) -> IntegerGrid:
        """The grid that has these scales, float32 [N, G]."""
        return IntegerGrid(self, in_features, scales, torch.full_like(scales, 128))


MX_FORMATS: dict[str, MxFormat] = {
    fmt.name: fmt
    for fmt in (
        *(MxFloatFormat(bits=element.bits, element=element) for element in SMALL_FLOATS),
        MxInt8Format(),
    )
}


def _exponent(value: float) -> int:
    """floor(log2(value))."""
    return math.frexp(value)[1] - 1


def _power_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """Float32 2**exponents, exactly, for int32 exponents of normal numbers."""
    return ((exponents + _BIAS) << 23).view(torch.float32)
