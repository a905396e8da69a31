"""Ternary weights: `value = scale * {-1, 0, 1}`, stored as a codebook of 2 bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qxcompiler.formats.base import weighting
from qxcompiler.formats.codebook import CodebookFormat, CodebookGrid

__all__ = ["TernaryFormat"]

_ENTRIES = (-1.0, 0.0, 1.0, 1.0)  # code 3 stays unused


@dataclass(frozen=True)
class TernaryFormat(CodebookFormat):
    """A fixed table of -1, 0 and 1 for the whole tensor: `ternaryg64`, `ternary`.

    The values of BitNet b1.58 (Ma et al. 2024), whose scale is one a tensor; here it is one a group.
    """

    bits: int = 2
    group_size: int | None = None
    per_tensor: bool = True

    @property
    def name(self) -> str:
        """Such as `ternaryg64`."""
        return f"ternary{f'g{self.group_size}' if self.group_size else ''}{self.suffix}"

    @property
    def learnable(self) -> frozenset[str]:
        """`scales`."""
        return frozenset({"scales"})

    def fit(self, weight: torch.Tensor, importance: torch.Tensor) -> CodebookGrid:
        """The best scale of every group, exactly.

        Whatever the scale, the weights that become ±1 are the largest. For the k largest the best scale is their
        weighted mean magnitude, (Σ hw) / Σ h, which takes (Σ hw)² / Σ h off the error (Ternary Weight Networks, Li
        et al. 2016, here weighted and without their approximation): the best k is found by trying every one.
        """
        magnitudes, order = self.grouped(weight).abs().sort(dim=-1, descending=True, stable=True)
        mass = self.grouped(weighting(importance)).expand_as(magnitudes).gather(-1, order).double()
        total = (mass * magnitudes).cumsum(-1)
        mass = mass.cumsum(-1)
        k = (total.square() / mass).argmax(-1, keepdim=True)
        scales = self.scale_type.rounded((total / mass).gather(-1, k).squeeze(-1).float())
        return CodebookGrid(self, weight.shape[1], scales, weight.new_tensor([_ENTRIES]))
