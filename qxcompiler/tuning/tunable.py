"""A quantized weight whose scales and table can be learned, with its codes as they are."""

from __future__ import annotations

__all__ = ["TunableWeight"]

from dataclasses import replace

import torch
from torch import Tensor

from qxcompiler.formats import CodebookGrid, Grid, IntegerGrid, QuantizedWeight

_LARGEST_ENTRY = 127


class TunableWeight:
    """What a quantized weight decodes to, as a function of its scales and, for a codebook, its table.

    Scales are learned as logarithms of what they are multiplied with, so that a step moves all of them alike, and none
    becomes negative; entries as shares of the largest, 127.

    Args:
        quantized: codes on a grid of integers or of a codebook.
        device: where to compute.
    """

    def __init__(self, quantized: QuantizedWeight, device: torch.device) -> None:
        grid = quantized.grid
        self._grid = grid
        self._codes = quantized.codes.to(device)
        self._scales = grid.scales.to(device)
        self.log_factors = torch.zeros_like(self._scales, requires_grad=True)
        self.entries: Tensor | None = None
        if isinstance(grid, CodebookGrid):
            self.entries = (grid.entries.to(device) / _LARGEST_ENTRY).requires_grad_()

    @staticmethod
    def can_tune(grid: Grid) -> bool:
        """Whether there is anything to learn in such a grid."""
        return isinstance(grid, (IntegerGrid, CodebookGrid))

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
        scales = self._scales * self.log_factors.exp()
        entries = None if self.entries is None else self.entries * _LARGEST_ENTRY
        if stored:
            rounded = self._grid.format.scale_type.rounded(scales.detach())
            scales = scales + (rounded - scales).detach()
            if entries is not None:
                entries = entries + (_rounded(entries.detach()) - entries).detach()
        if entries is not None:
            levels = entries.expand(len(self._codes), -1).gather(1, self._codes.long())
        else:
            assert isinstance(self._grid, IntegerGrid)
            levels = self._codes.float() - self._by_column(self._grid.zeros.to(scales))
        return levels * self._by_column(scales)

    def quantized(self) -> QuantizedWeight:
        """The weight with what was learned, as it is stored."""
        with torch.no_grad():
            scales = self._grid.format.scale_type.rounded(self._scales * self.log_factors.exp()).to(self._grid.scales)
            codes = self._codes.to(self._grid.scales.device)
            if not isinstance(self._grid, CodebookGrid):
                return QuantizedWeight(replace(self._grid, scales=scales), codes)
            assert self.entries is not None
            entries, order = _rounded(self.entries * _LARGEST_ENTRY).to(self._grid.entries).sort(dim=1, stable=True)
            places = order.argsort(1).to(torch.uint8)  # where each entry went
            codes = places.expand(len(codes), -1).gather(1, codes.long())
            return QuantizedWeight(replace(self._grid, scales=scales, entries=entries), codes)

    def _by_column(self, per_group: Tensor) -> Tensor:
        """[N, G] as [N, K]."""
        N, K = self._codes.shape
        length = self._grid.format.group_length(K)
        return per_group[..., None].expand(N, per_group.shape[1], length).reshape(N, -1)[:, :K]


def _rounded(entries: Tensor) -> Tensor:
    return entries.round().clamp(-_LARGEST_ENTRY, _LARGEST_ENTRY)
