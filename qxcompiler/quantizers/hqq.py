"""HQQ: a grid that most weights lie close to, found without samples."""

from __future__ import annotations

__all__ = ["hqq", "lp_error", "shrink"]

from dataclasses import replace

import torch
from torch import Tensor

from qxcompiler.calibration.statistics import InputStatistics
from qxcompiler.formats import Format, Grid, IntegerGrid, QuantizedWeight

_P = 0.7
_BETA, _KAPPA = 1.0, 1.05
_ITERATIONS = 30


def hqq(weight: Tensor, fmt: Format, statistics: InputStatistics | None) -> QuantizedWeight:
    """Half-quadratic quantization (Badri and Shaji 2023): find the grid with a small sum of |W - Ŵ|^p, p = 0.7.

    W_e stands for the errors, large ones above all. In turn, W_e becomes the shrunk errors, and the grid fits W - W_e
    best with the codes as they are: a quadratic problem, whose solution is a mean for the zero point and a quotient for
    the scale. β says how closely W_e follows, and grows by κ. Each group keeps the best grid that it had.

    Beyond the paper, zero points are whole numbers, as the formats store them; scales are fitted too, so that formats
    without zero points gain; errors are in units of their group's root mean square. Tables are what the format's own
    search finds, as is the grid to begin with.

    Args:
        weight: float32 [N, K].
        fmt: the format to encode in; of one whose scales are not free the grid stays as it was found.
        statistics: not used.
    """
    grid = best = fmt.fit(weight, weight.new_ones(weight.shape[1]))
    lowest = lp_error(weight, best)
    W, count = fmt.grouped(weight), fmt.grouped(weight.new_ones(weight.shape[1])).sum(-1)
    for step in range(_ITERATIONS if "scales" in fmt.learnable else 0):
        codes = grid.encode(weight, slice(None))
        error = W - fmt.grouped(grid.decode(codes, slice(None)))
        unit = (error.square().sum(-1) / count).sqrt().clamp(min=torch.finfo(W.dtype).tiny)[..., None]
        W_e = unit * shrink(error / unit, _BETA * _KAPPA**step)
        grid = fitted(grid, codes, W - W_e)
        found = lp_error(weight, grid)
        best, lowest = _better(found < lowest, grid, best), torch.minimum(found, lowest)
    return QuantizedWeight(best, best.encode(weight, slice(None)))


def shrink(x: Tensor, beta: float, p: float = _P) -> Tensor:
    """The generalised soft threshold, sign(x) max(|x| - |x|^(p-1) / β, 0): near to min |e|^p / p + β (e - x)² / 2."""
    magnitude = x.abs()
    return x.sign() * (magnitude - magnitude.pow(p - 1) / beta).clamp(min=0)


def fitted(grid: Grid, codes: Tensor, target: Tensor) -> Grid:
    """The grid that comes closest to a target [N, G, group length] with given codes [N, K], in squares.

    First the zero points, with the scales as they are, then the scales.
    """
    fmt = grid.format
    if isinstance(grid, IntegerGrid) and grid.format.has_zero_points:
        count = fmt.grouped(target.new_ones(grid.in_features)).sum(-1)
        mean = (fmt.grouped(codes.float()) - target / grid.scales[..., None]).sum(-1) / count
        grid = replace(grid, zeros=mean.round().clamp(0, 2**fmt.bits - 1))
    levels = fmt.grouped(grid.decode(codes, slice(None)) / grid.column_scales(slice(None)))
    quotient = (levels * target).sum(-1) / levels.square().sum(-1)
    scales = torch.where(quotient.isfinite() & (quotient > 0), quotient, grid.scales)
    return replace(grid, scales=fmt.scale_type.rounded(scales))


def lp_error(weight: Tensor, grid: Grid) -> Tensor:
    """The sum of |W - Ŵ|^p of every group [N, G]; of the whole row where its groups' scales depend on each other."""
    fmt = grid.format
    error = weight - grid.decode(grid.encode(weight, slice(None)), slice(None))
    sums = fmt.grouped(error.abs().pow(_P)).sum(-1)
    return sums.sum(1, keepdim=True).expand_as(sums) if fmt.scale_type.row_bytes else sums


def _better(is_better: Tensor, grid: Grid, other: Grid) -> Grid:
    merged = replace(other, scales=torch.where(is_better, grid.scales, other.scales))
    if isinstance(grid, IntegerGrid) and isinstance(merged, IntegerGrid) and isinstance(other, IntegerGrid):
        merged = replace(merged, zeros=torch.where(is_better, grid.zeros, other.zeros))
    return merged
