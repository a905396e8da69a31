"""Round to nearest, on a grid chosen by clipping search."""

from __future__ import annotations

import torch

from qxcompiler.calibration.statistics import InputStatistics
from qxcompiler.formats import Format, QuantizedWeight

__all__ = ["rtn"]


def rtn(weight: torch.Tensor, fmt: Format, statistics: InputStatistics | None) -> QuantizedWeight:
    """Round every weight to the nearest value of its grid.

    Args:
        weight: float32 [N, K].
        fmt: the format to encode in.
        statistics: of the site's input; without them every input counts alike.
    """
    importance = weight.new_ones(weight.shape[1]) if statistics is None else statistics.importance
    grid = fmt.fit(weight, importance)
    return QuantizedWeight(grid, grid.encode(weight, slice(None)))
