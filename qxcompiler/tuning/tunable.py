"""A quantized weight whose scales and table can be learned, with its codes as they are."""

from __future__ import annotations

__all__ = ["TunableWeight"]

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from qxcompiler.formats import LARGEST_ENTRY, CodebookGrid, Grid, QuantizedWeight, rotate_back


class TunableWeight:
    """What a quantized weight decodes to, as a function of what its format lets be learned.

    Scales are learned as logarithms of what they are multiplied with, so that a step moves all of them alike, and none
    becomes negative; entries of a codebook as shares of the largest, 127.

    Args:
        quantized: codes of a format with something `learnable`.
        device: where to compute.
        partner: another weight, with the same table, which they go on sharing.
    """

    def __init__(self, quantized: QuantizedWeight, device: torch.device, partner: TunableWeight | None = None) -> None:
        self._home = quantized.codes.device
        self._codes = quantized.codes.to(device)
        self._grid = _moved(quantized.grid, device)
        self.log_factors = torch.zeros_like(self._grid.scales, requires_grad=True)
        self.entries: Tensor | None = None
        if partner is not None:
            self.entries = partner.entries
        elif isinstance(self._grid, CodebookGrid) and "codebook" in quantized.format.learnable:
            self.entries = (self._grid.entries / LARGEST_ENTRY).requires_grad_()

    def has_table_of(self, quantized: QuantizedWeight) -> bool:
        """Whether another weight, of the same format, has the same table before anything is learned."""
        other = _moved(quantized.grid, self._codes.device)
        ours = self._grid
        return isinstance(ours, CodebookGrid) and isinstance(other, CodebookGrid) and ours.entries.equal(other.entries)

    @property
    def parameters(self) -> list[Tensor]:
        """What is learned."""
        return [self.log_factors] if self.entries is None else [self.log_factors, self.entries]

    def matrix(self, *, stored: bool) -> Tensor:
        """Float32 [N, K], differentiable.

        Args:
            stored: round scales and entries to the types in which they are stored; the derivative goes straight
                through (Bengio et al. 2013).
        """
        matrix = self._learned(stored=stored).decode(self._codes, slice(None))
        return rotate_back(matrix) if self._grid.format.rotated else matrix

    def quantized(self) -> QuantizedWeight:
        """The weight with what was learned, as it is stored."""
        with torch.no_grad():
            grid, codes = self._learned(stored=True), self._codes
            if isinstance(grid, CodebookGrid):  # entries ascend
                entries, order = grid.entries.sort(dim=1, stable=True)
                grid = replace(grid, entries=entries)
                codes = order.argsort(1).to(torch.uint8).expand(len(codes), -1).gather(1, codes.long())
            return QuantizedWeight(_moved(grid, self._home), codes.to(self._home))

    def _learned(self, *, stored: bool) -> Grid:
        learned: dict[str, Any] = {"scales": self._grid.scales * self.log_factors.exp()}
        if self.entries is not None:
            learned["entries"] = self.entries * LARGEST_ENTRY
        if stored:
            rounded = {"scales": self._grid.format.scale_type.rounded(learned["scales"].detach())}
            if self.entries is not None:
                rounded["entries"] = learned["entries"].detach().round().clamp(-LARGEST_ENTRY, LARGEST_ENTRY)
            for name, value in learned.items():
                straight_through = value + (rounded[name] - value).detach()  # but for the last bit of a float
                learned[name] = straight_through if value.requires_grad else rounded[name]
        return replace(self._grid, **learned)


def _moved(grid: Grid, device: torch.device) -> Grid:
    tensors = {field.name: getattr(grid, field.name) for field in fields(grid)}
    moved: dict[str, Any] = {name: each.to(device) for name, each in tensors.items() if isinstance(each, Tensor)}
    return replace(grid, **moved)
