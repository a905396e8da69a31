"""Uniform formats: `value = scale * (code - zero_point)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from qxcompiler.formats.base import Columns, Format, Grid

__all__ = ["INTEGER_BITS", "IntegerFormat", "IntegerGrid"]

INTEGER_BITS = (2, 3, 4, 5, 6, 8)
_CACHED = 1 << 18  # weights that a processor's cache holds while their clipping is searched
_CLIPPING_RATIOS = tuple(1.0 - 0.025 * step for step in range(21))


@dataclass(frozen=True)
class IntegerFormat(Format):
    """Integers with a scale a group: `int3g128`, `int4g32a`, `int8`, `int3g32as8`.

    Attributes:
        asymmetric: every group stores a zero point of its own; otherwise it is `2**(bits-1)`.
    """

    asymmetric: bool = False

    @property
    def name(self) -> str:
        """Such as `int3g128a`."""
        group = f"g{self.group_size}" if self.group_size else ""
        return f"int{self.bits}{group}{'a' if self.asymmetric else ''}{self.suffix}"

    @property
    def code_type(self) -> str:
        """`UInt` with zero points, else `Int`."""
        return "UInt" if self.asymmetric else "Int"

    @property
    def largest_code(self) -> int:
        """`2**bits - 1`."""
        return int(2**self.bits) - 1

    @property
    def learnable(self) -> frozenset[str]:
        """`scales`."""
        return frozenset({"scales"})

    def codebook_rows(self, out_features: int) -> int:
        """None are stored."""
        return 0

    def fit(self, weight: torch.Tensor, importance: torch.Tensor) -> IntegerGrid:
        """Search a clipping ratio for every group, by weighted squared error (as AWQ's and OmniQuant's clipping)."""
        rows = max(1, (weight.numel() if weight.is_cuda else _CACHED) // weight.shape[1])
        spans = [self._span(part, importance) for part in torch.split(weight, rows)]
        low, high = (torch.cat(ends) for ends in zip(*spans, strict=True))
        return self._spanning(weight.shape[1], low, high)

    def _span(self, weight: torch.Tensor, importance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The ends of every group's best grid, each [N, G]."""
        grouped, weighting = self.grouped(weight), self.grouped(importance)
        # zero is always representable, so that padding and pruned weights stay exact
        low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)

        best, best_error = torch.ones_like(low), torch.full_like(low, torch.inf)
        for ratio in _CLIPPING_RATIOS:
            grid = self._spanning(weight.shape[1], low * ratio, high * ratio)
            scale, zero = grid.scales[..., None], grid.zeros[..., None]
            decoded = (grouped / scale).round_().add_(zero).clamp_(0, self.largest_code).sub_(zero).mul_(scale)
            error = decoded.sub_(grouped).square_().mul_(weighting).sum(-1)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best = torch.where(better, ratio, best)
        return low * best, high * best

    def grid(self, in_features: int, stored: Mapping[str, torch.Tensor]) -> IntegerGrid:
        """From stored scales and zero points."""
        scales = self.scale_type.values(stored)
        zeros = stored["zero_points"].float() if self.asymmetric else torch.full_like(scales, 2 ** (self.bits - 1))
        return IntegerGrid(self, in_features, scales, zeros)

    def _spanning(self, in_features: int, low: torch.Tensor, high: torch.Tensor) -> IntegerGrid:
        """The grid whose groups span [low, high] (float32 [N, G])."""
        if self.asymmetric:
            scales = self.scale_type.rounded((high - low) / self.largest_code)
            zeros = torch.clamp(torch.round(-low / scales), 0, self.largest_code)
        else:
            # codes reach one step further below zero than above it
            scales = torch.maximum(-low / 2 ** (self.bits - 1), high / (2 ** (self.bits - 1) - 1))
            scales = self.scale_type.rounded(scales)
            zeros = torch.full_like(scales, 2 ** (self.bits - 1))
        return IntegerGrid(self, in_features, scales, zeros)


@dataclass(frozen=True)
class IntegerGrid(Grid):
    """A uniform grid.

    Attributes:
        zeros: float32 [N, G], integers: the code that stands for 0.
    """

    zeros: torch.Tensor

    @property
    def stored(self) -> dict[str, torch.Tensor]:
        """Scales, and zero points where the format has them."""
        zero_points = {"zero_points": self.zeros.to(torch.uint8)} if self.format.has_zero_points else {}
        return super().stored | zero_points

    def encode(self, values: torch.Tensor, columns: Columns) -> torch.Tensor:
        """Round to nearest (ties to even) and clamp."""
        codes = torch.round(values / self.column_scales(columns)) + self._by_column(self.zeros, columns)
        return codes.clamp_(0, 2**self.format.bits - 1).to(torch.uint8)

    def decode(self, codes: torch.Tensor, columns: Columns) -> torch.Tensor:
        """`scale * (code - zero_point)`."""
        return self.column_scales(columns) * (codes.float() - self._by_column(self.zeros, columns))
