"""Microscaling formats: groups of 32 small floats (the specification's blocks) that share a power of two.

OCP Microscaling Formats (MX) Specification, version 1.0: elements FP4 E2M1 (section 5.3.3), scales E8M0 (section
5.4.1), conversion (section 6.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from qxcompiler.formats.base import Columns, Format, Grid
from qxcompiler.formats.scales import E8M0, ScaleType

__all__ = ["E2M1_VALUES", "MX_FORMATS", "MxFormat", "MxGrid"]

MX_FORMATS = ("mxfp4",)

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_SIGN = 8
E2M1_VALUES = (*_MAGNITUDES, *(-magnitude for magnitude in _MAGNITUDES))
"""The value of every FP4 code: bit 3 is the sign, so that code 8 is -0."""

_BIAS = 127
_MIDPOINTS = (torch.tensor(_MAGNITUDES[1:]) + torch.tensor(_MAGNITUDES[:-1])) / 2
# a value on a border gets the lower code, which is the even one below every other midpoint only
_BORDERS = torch.where(torch.arange(7) % 2 == 0, _MIDPOINTS, torch.nextafter(_MIDPOINTS, torch.zeros(7)))

_GROUP_SIZE = 32
_LARGEST_ELEMENT_EXPONENT = 2  # of 6 = 1.5 * 2**2
# beyond these, 0.5 * scale is subnormal, or 6 * scale infinite, in float32
_SMALLEST_EXPONENT, _LARGEST_EXPONENT = 2 - _BIAS, 252 - _BIAS


@dataclass(frozen=True)
class MxFormat(Format):
    """FP4 elements (E2M1) in groups of 32 along K, with a power-of-two scale a group (E8M0): `mxfp4`."""

    bits: int = 4
    group_size: int | None = _GROUP_SIZE
    scale_type: ScaleType = E8M0

    @property
    def name(self) -> str:
        """`mxfp4`."""
        return f"mxfp4{'h' if self.rotated else ''}"

    @property
    def code_type(self) -> str:
        """`Fp`."""
        return "Fp"

    def codebook_rows(self, out_features: int) -> int:
        """None are stored: the 16 values are the specification's."""
        return 0

    def fit(self, weight: torch.Tensor, importance: torch.Tensor) -> MxGrid:
        """The specification's exponent, floor(log2(max|w|)) - 2, or a neighbour where it loses less.

        The one above does not saturate what lies between 6 and 8 times the specification's scale; the one below
        saturates more, and halves the steps.
        """
        grouped = self.grouped(weight)
        exponents = torch.frexp(grouped.abs().amax(-1)).exponent - 1 - _LARGEST_ELEMENT_EXPONENT
        exponents.clamp_(_SMALLEST_EXPONENT + 1, _LARGEST_EXPONENT - 1)
        # in units of the specification's scale, where no square overflows or underflows
        normalised = grouped / _power_of_two(exponents)[..., None]
        elements = normalised.new_tensor(E2M1_VALUES)

        best = exponents
        best_error = torch.full_like(normalised[..., 0], torch.inf)
        for step in (0, 1, -1):
            decoded = 2.0**step * elements[_nearest_element(normalised / 2.0**step).long()]
            error = ((decoded - normalised).square_() * self.grouped(importance)).sum(-1)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best = torch.where(better, exponents + step, best)
        return MxGrid(self, weight.shape[1], _power_of_two(best))

    def grid(self, in_features: int, stored: Mapping[str, torch.Tensor]) -> MxGrid:
        """From stored bytes of E8M0."""
        return MxGrid(self, in_features, self.scale_type.values(stored))


def _power_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """Float32 2**exponents, exactly, for int32 exponents of normal numbers."""
    return ((exponents + _BIAS) << 23).view(torch.float32)


def _nearest_element(values: torch.Tensor) -> torch.Tensor:
    """FP4 codes of float32 values: round to nearest, ties to even, saturating; uint8."""
    codes = torch.bucketize(values.abs(), _BORDERS.to(values.device)).to(torch.uint8)
    return codes | values.signbit().to(torch.uint8) * _SIGN


@dataclass(frozen=True)
class MxGrid(Grid):
    """FP4 values, times a power of two a group."""

    def encode(self, values: torch.Tensor, columns: Columns) -> torch.Tensor:
        """Round to nearest (ties to even) and saturate."""
        return _nearest_element(values / self.column_scales(columns))

    def decode(self, codes: torch.Tensor, columns: Columns) -> torch.Tensor:
        """`scale * element`."""
        return self.column_scales(columns) * self.scales.new_tensor(E2M1_VALUES)[codes.long()]
