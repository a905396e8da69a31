"""Small floats as codes: the elements of microscaling formats, and float8 with a scale a group of any kind.

OCP Microscaling Formats (MX) Specification, version 1.0, section 5.3; OCP 8-bit Floating Point Specification (OFP8),
revision 1.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, nan

import torch

from qxcompiler.formats.base import Columns, Format, Grid

__all__ = ["E2M1", "FLOAT8_ELEMENTS", "SMALL_FLOATS", "Float8Format", "FloatGrid", "SmallFloat"]

# Steps are alike in every octave, so that what can be chosen is where in one the weights lie.
_SCALES_TRIED = tuple(2.0 ** (step / 4) for step in range(4))


@dataclass(frozen=True)
class SmallFloat:
    """A float of few bits: the sign, the exponent, whose bias is `2**(exponent_bits-1) - 1`, and the mantissa.

    Exponent 0 is that of subnormals. A code without its sign is a *magnitude*, and larger codes are larger magnitudes.

    Attributes:
        exponent_bits: bits of the exponent.
        mantissa_bits: bits of the mantissa, without the leading one.
        not_finite: what the last magnitudes stand for, if they are no numbers.
    """

    exponent_bits: int
    mantissa_bits: int
    not_finite: tuple[float, ...] = field(default=(), compare=False)  # NaN equals nothing

    @property
    def name(self) -> str:
        """Such as `E4M3`."""
        return f"E{self.exponent_bits}M{self.mantissa_bits}"

    @property
    def code_type(self) -> str:
        """`Fp` for E2M1, which is the only one of 4 bits, else its name."""
        return "Fp" if self.bits == 4 else self.name

    @property
    def bits(self) -> int:
        """Of a code."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @cached_property
    def magnitudes(self) -> tuple[float, ...]:
        """The finite ones, ascending from 0."""
        lowest = 2 - 2 ** (self.exponent_bits - 1)  # of normal numbers; subnormals count in the same steps
        found = []
        for code in range(2 ** (self.bits - 1) - len(self.not_finite)):
            exponent, mantissa = divmod(code, 2**self.mantissa_bits)
            leading = min(exponent, 1) << self.mantissa_bits
            found.append((leading + mantissa) * 2.0 ** (lowest + max(exponent - 1, 0) - self.mantissa_bits))
        return tuple(found)

    @cached_property
    def values(self) -> tuple[float, ...]:
        """What every code stands for; half of them are negative, -0 among them."""
        positive = (*self.magnitudes, *self.not_finite)
        return (*positive, *(-magnitude for magnitude in positive))

    @cached_property
    def _table(self) -> torch.Tensor:
        return torch.tensor(self.values)

    @cached_property
    def _borders(self) -> torch.Tensor:
        """Up to where each magnitude but the last is the nearest."""
        magnitudes = self._table[: len(self.magnitudes)]
        midpoints = (magnitudes[1:] + magnitudes[:-1]) / 2
        # a value on a border gets the lower code, which is the even one below every other midpoint only
        is_even = torch.arange(len(midpoints)) % 2 == 0
        return torch.where(is_even, midpoints, torch.nextafter(midpoints, torch.zeros(())))

    def nearest(self, values: torch.Tensor) -> torch.Tensor:
        """The codes of float32 values: round to nearest, ties to even, saturating; uint8."""
        codes = torch.bucketize(values.abs(), self._borders.to(values.device)).to(torch.uint8)
        return codes | values.signbit().to(torch.uint8) << (self.bits - 1)

    def decoded(self, codes: torch.Tensor) -> torch.Tensor:
        """The values of uint8 codes: float32."""
        return self._table.to(codes.device)[codes.int()]


E2M1 = SmallFloat(2, 1)
E2M3 = SmallFloat(2, 3)
E3M2 = SmallFloat(3, 2)
E4M3 = SmallFloat(4, 3, (nan,))
E5M2 = SmallFloat(5, 2, (inf, nan, nan, nan))
SMALL_FLOATS = (E2M1, E2M3, E3M2, E4M3, E5M2)
FLOAT8_ELEMENTS = {element.name.lower(): element for element in (E4M3, E5M2)}


@dataclass(frozen=True)
class Float8Format(Format):
    """Float8 with a scale a group: `fp8e4m3g128`, `fp8e5m2`.

    Attributes:
        element: E4M3 or E5M2.
    """

    element: SmallFloat = E4M3

    @property
    def name(self) -> str:
        """Such as `fp8e4m3g128`."""
        return f"fp8{self.element.name.lower()}{f'g{self.group_size}' if self.group_size else ''}{self.suffix}"

    @property
    def code_type(self) -> str:
        """`E4M3` or `E5M2`."""
        return self.element.code_type

    @property
    def learnable(self) -> frozenset[str]:
        """`scales`."""
        return frozenset({"scales"})

    def codebook_rows(self, out_features: int) -> int:
        """None are stored: values are the specification's."""
        return 0

    def grid(self, in_features: int, stored: Mapping[str, torch.Tensor]) -> FloatGrid:
        """From stored scales."""
        return FloatGrid(self, in_features, self.scale_type.values(stored), self.element)

    def fit(self, weight: torch.Tensor, importance: torch.Tensor) -> FloatGrid:
        """The scale at which a group's largest weight is the largest element, or up to an octave more where that loses
        less.
        """
        K = weight.shape[1]
        largest = self.grouped(weight).abs().amax(-1) / self.element.magnitudes[-1]
        best, best_error = torch.ones_like(largest), torch.full_like(largest, torch.inf)
        for factor in _SCALES_TRIED:
            grid = FloatGrid(self, K, self.scale_type.rounded(largest * factor), self.element)
            decoded = grid.decode(grid.encode(weight, slice(None)), slice(None))
            error = self.grouped(decoded.sub_(weight).square_().mul_(importance)).sum(-1)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best = torch.where(better, factor, best)
        return FloatGrid(self, K, self.scale_type.rounded(largest * best), self.element)


@dataclass(frozen=True)
class FloatGrid(Grid):
    """Small floats, times a scale a group.

    Attributes:
        element: which.
    """

    element: SmallFloat

    def encode(self, values: torch.Tensor, columns: Columns) -> torch.Tensor:
        """Round to nearest (ties to even) and saturate."""
        return self.element.nearest(values / self.column_scales(columns))

    def decode(self, codes: torch.Tensor, columns: Columns) -> torch.Tensor:
        """`scale * element`."""
        return self.column_scales(columns) * self.element.decoded(codes)
