"""Codebook (look-up-table) formats: `value = scale * codebook[code]` with 8-bit entries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import torch

from qxcompiler.formats.base import Columns, Format, Grid, weighting

__all__ = ["CODEBOOK_BITS", "LARGEST_ENTRY", "CodebookFormat", "CodebookGrid", "normal_float_levels"]

CODEBOOK_BITS = (2, 3, 4)
LARGEST_ENTRY = 127
_BINS = 64  # between two entries, for a table of many weights
_KMEANS_ITERATIONS = 15
_SCALE_REFINEMENTS = 2


@dataclass(frozen=True)
class CodebookFormat(Format):
    """Codes index a table of 8-bit entries: `lut3g128` (learned, a table a row), `lut3g128t` (a table a tensor),
    `nf4g64`.

    Attributes:
        per_tensor: one table for the whole matrix instead of one a row.
        normal_float: the fixed table of NF4 (QLoRA, Dettmers et al. 2023, appendix E), rounded to
            8-bit entries as the kernels read them (off by at most 1/254 of a group's largest weight).
    """

    per_tensor: bool = False
    normal_float: bool = False

    @property
    def name(self) -> str:
        """Such as `lut3g128`."""
        group = f"g{self.group_size}" if self.group_size else ""
        if self.normal_float:
            return f"nf{self.bits}{group}{self.suffix}"
        return f"lut{self.bits}{group}{'t' if self.per_tensor else ''}{self.suffix}"

    @property
    def code_type(self) -> str:
        """`Lut`."""
        return "Lut"

    @property
    def learnable(self) -> frozenset[str]:
        """`scales`, and `codebook` unless the table is NF4's."""
        return frozenset({"scales"} if self.normal_float else {"scales", "codebook"})

    def codebook_rows(self, out_features: int) -> int:
        """1 or N."""
        return 1 if self.per_tensor or self.normal_float else out_features

    def fit(self, weight: torch.Tensor, importance: torch.Tensor) -> CodebookGrid:
        """Weighted k-means on group-normalised weights, in turn with scales by least squares.

        The weighting is SqueezeLLM's (Kim et al. 2024, equation 4), the diagonal of XᵀX standing for the Fisher matrix.
        """
        N, K = weight.shape
        group_of = self.group_of(K, weight.device)
        largest = torch.zeros(N, self.groups(K), device=weight.device)
        largest.scatter_reduce_(1, group_of.expand(N, K), weight.abs(), "amax")
        grid = CodebookGrid(self, K, self.scale_type.rounded(largest / LARGEST_ENTRY), self._initial_entries(weight))
        importance = weighting(importance)
        for refinement in range(_SCALE_REFINEMENTS + 1):
            if not self.normal_float:
                grid = CodebookGrid(self, K, grid.scales, self._learned_entries(weight, importance, grid))
            if refinement < _SCALE_REFINEMENTS:
                grid = CodebookGrid(self, K, _least_squares_scales(weight, importance, grid), grid.entries)
        return grid

    def grid(self, in_features: int, stored: Mapping[str, torch.Tensor]) -> CodebookGrid:
        """From stored scales and tables."""
        return CodebookGrid(self, in_features, self.scale_type.values(stored), stored["codebook"].float())

    def _initial_entries(self, weight: torch.Tensor) -> torch.Tensor:
        if self.normal_float:
            levels = torch.tensor(normal_float_levels(self.bits), device=weight.device)
        else:
            levels = torch.linspace(-1, 1, 2**self.bits, device=weight.device)
        return torch.round(LARGEST_ENTRY * levels).expand(self.codebook_rows(weight.shape[0]), -1)

    def _learned_entries(self, weight: torch.Tensor, importance: torch.Tensor, grid: CodebookGrid) -> torch.Tensor:
        scales = grid.column_scales(slice(None))
        normalised = (weight / scales).clamp(-LARGEST_ENTRY, LARGEST_ENTRY)
        mass = importance * scales.square()
        if self.per_tensor:
            normalised, mass = binned(normalised, mass)
        centres = weighted_kmeans(normalised, mass, 2**self.bits)
        return torch.round(centres)


def binned(points: torch.Tensor, mass: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The means and masses of those points that are alike to 1/64 of a step between entries.

    Args:
        points: float32, -127 to 127; a million of them take long to sort.
        mass: the same shape, positive.

    Returns:
        float32 and float64 [1, P], with P at most 16257; the means ascend.
    """
    points, mass = points.reshape(-1).double(), mass.reshape(-1).double()
    place = torch.round((points + LARGEST_ENTRY) * _BINS).long()
    masses, totals = (torch.bincount(place, weights) for weights in (mass, mass * points))
    filled = masses > 0
    return (totals[filled] / masses[filled]).float()[None], masses[filled][None]


def weighted_kmeans(points: torch.Tensor, mass: torch.Tensor, clusters: int) -> torch.Tensor:
    """One-dimensional k-means of every row (Lloyd's iterations from equal-mass quantiles).

    Sorted once: a cluster is then a run of points, and its mean a difference of prefix sums.

    Args:
        points: float32 [R, P].
        mass: float32 or float64 [R, P], positive.
        clusters: how many centres.

    Returns:
        float32 [R, clusters], ascending.
    """
    points, order = points.sort(dim=1)
    mass = mass.gather(1, order).double()
    zero = mass.new_zeros(mass.shape[0], 1)
    total_mass = torch.cat([zero, mass.cumsum(1)], 1)
    total = torch.cat([zero, (mass * points).cumsum(1)], 1)

    # quantiles of mass**(1/3)-density lie where the optimal quantizer's centres do (Panter and Dite 1951)
    density = torch.linspace(0.5 / clusters, 1 - 0.5 / clusters, clusters, device=points.device, dtype=torch.double)
    place = torch.searchsorted(total_mass[:, 1:] / total_mass[:, -1:], density.expand(points.shape[0], -1).contiguous())
    centres = points.gather(1, place.clamp(max=points.shape[1] - 1)).double()
    spread = torch.linspace(0, 1, clusters, device=points.device, dtype=torch.double)
    uniform = points[:, :1] + (points[:, -1:] - points[:, :1]) * spread
    centres = ((centres + uniform) / 2).contiguous()

    for _ in range(_KMEANS_ITERATIONS):
        borders = (centres[:, 1:] + centres[:, :-1]) / 2
        ends = torch.searchsorted(points, borders.float().contiguous(), right=True)
        ends = torch.nn.functional.pad(ends, (1, 1))
        ends[:, -1] = points.shape[1]
        cluster_mass = total_mass.gather(1, ends).diff(dim=1)
        cluster_total = total.gather(1, ends).diff(dim=1)
        centres = torch.where(cluster_mass > 0, cluster_total / cluster_mass.clamp(min=1e-300), centres)
    return centres.float()


def _least_squares_scales(weight: torch.Tensor, importance: torch.Tensor, grid: CodebookGrid) -> torch.Tensor:
    """For fixed codes, the scale of every group that minimises the weighted squared error: float32 [N, G]."""
    N, K = weight.shape
    codes = grid.encode(weight, slice(None))
    levels = grid.entries.expand(N, -1).gather(1, codes.long())
    group_of = grid.format.group_of(K, weight.device).expand(N, K)
    weighted = importance * levels
    zeros = torch.zeros_like(grid.scales)
    numerator = zeros.scatter_add(1, group_of, weighted * weight)
    denominator = zeros.scatter_add(1, group_of, weighted * levels)
    scales = torch.where(denominator > 0, numerator / denominator.clamp(min=1e-30), grid.scales)
    return grid.format.scale_type.rounded(torch.where(scales > 0, scales, grid.scales))


def normal_float_levels(bits: int) -> list[float]:
    """The levels of NormalFloat: quantiles of a normal distribution, with an exact zero.

    QLoRA (Dettmers et al. 2023, appendix E): 2**(bits-1) + 1 quantiles for the positive half, 2**(bits-1) for the
    negative half, both from an offset chosen so that no level is infinite, scaled to [-1, 1].

    Returns:
        2**bits ascending numbers, the first -1 and the last 1.
    """
    half = 2 ** (bits - 1)
    offset = 0.5 * ((1 - 1 / (2 * 2 * half)) + (1 - 1 / (2 * (2 * half - 1))))

    def quantiles(count: int) -> list[float]:
        return [NormalDist().inv_cdf(0.5 + (offset - 0.5) * i / (count - 1)) for i in range(count)]

    positive, negative = quantiles(half + 1), quantiles(half)
    levels = [-q for q in reversed(negative[1:])] + positive
    return [level / positive[-1] for level in levels]


@dataclass(frozen=True)
class CodebookGrid(Grid):
    """A table of values, times a scale a group.

    Attributes:
        entries: float32 [N or 1, 2**bits], integers in -127..127, ascending.
    """

    entries: torch.Tensor

    @cached_property
    def _borders(self) -> torch.Tensor:
        """Half-way between neighbouring entries: float32 [N, 2**bits - 1]."""
        lower, upper = self.entries[:, :-1], self.entries[:, 1:]
        # of equal entries only the first is ever chosen: the border between them moves up to the next one
        borders = torch.where(lower < upper, (lower + upper) / 2, torch.inf).flip(1).cummin(1).values.flip(1)
        return borders.expand(self.scales.shape[0], -1).contiguous()

    @property
    def stored(self) -> dict[str, torch.Tensor]:
        """Scales and tables."""
        return super().stored | {"codebook": self.entries.to(torch.int8)}

    def encode(self, values: torch.Tensor, columns: Columns) -> torch.Tensor:
        """The nearest entry (the lower one of two equally near)."""
        normalised = (values / self.column_scales(columns)).contiguous()
        return torch.searchsorted(self._borders, normalised).to(torch.uint8)

    def decode(self, codes: torch.Tensor, columns: Columns) -> torch.Tensor:
        """`scale * codebook[code]`."""
        return self.column_scales(columns) * self.entries.expand(codes.shape[0], -1).gather(1, codes.long())
