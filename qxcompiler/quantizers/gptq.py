"""GPTQ: round column by column, moving each column's error onto the columns not yet rounded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from qxcompiler.calibration.statistics import InputStatistics
from qxcompiler.formats import Format, QuantizedWeight
from qxcompiler.quantizers.rtn import rtn

__all__ = ["FEEDBACK", "gptq"]

# A few columns are too little work to share: threads would wait for each other most of the time.
_SHARED = 128
_DAMPING = 0.01
_LARGEST_DAMPING = 10.0
# Chosen on text held back of the kind calibrated on, and of another (docs/results.md, "Feedback from the original").
FEEDBACK = 0.35


def gptq(weight: torch.Tensor, fmt: Format, statistics: InputStatistics | None) -> QuantizedWeight:
    """Quantize as GPTQ (Frantar et al. 2023, algorithm 1) onto any grid.

    Columns go in the order of falling diagonal of H = XᵀX ("activation order"); the grid is fitted beforehand, so that
    groups stay runs of neighbouring columns ("static groups").

    Where it is known how far X has drifted from what the original model has in its place, X̃, since layers before are
    quantized, what is rounded is no longer W but what gives W X̃ᵀ of X: W + W (X̃ - X)ᵀX H⁻¹ comes closest (GPTAQ, Li et
    al. 2025, minimizes |ŴXᵀ - WX̃ᵀ|², which is |(Ŵ - W - W (X̃ - X)ᵀX H⁻¹)Xᵀ|² and a constant). A share of the correction
    is made, as there: on other text the drift is another.

    Args:
        weight: float32 [N, K].
        fmt: the format to encode in, uniform or not.
        statistics: of the site's input; without them (an embedding) there is no H, and this is `rtn`.

    Raises:
        ArithmeticError: H is no second moment, and cannot be factorised.
    """
    if statistics is None:
        return rtn(weight, fmt, None)
    order = torch.argsort(statistics.importance, descending=True, stable=True)
    U = _inverse_factor(statistics, order)
    if (drift := statistics.shrunk_drift()) is not None:
        weight = weight + FEEDBACK * ((weight @ drift)[:, order] @ U.T @ U)[:, torch.argsort(order)]
    grid = fmt.fit(weight, statistics.importance)

    W = weight.T[order].contiguous()  # [K, N]: a column of the matrix is contiguous
    codes = torch.empty(W.shape, dtype=torch.uint8, device=W.device)
    columns, threads = order.tolist(), torch.get_num_threads()
    with _threads(1), torch.inference_mode():
        for done, column in enumerate(columns, start=1):
            w = W[done - 1].unsqueeze(1)
            q = grid.encode(w, column)
            codes[done - 1] = q.squeeze(1)
            # in a column's place, once it is rounded: its error, in units of the diagonal of U
            W[done - 1] = (w - grid.decode(q, column)).squeeze(1) / U[done - 1, done - 1]
            # The largest power of two that divides `done`: so many columns move their errors onto as many that follow.
            # Every pair of columns meets once so, nearly all in products of large matrices.
            size = done & -done
            rounded, following = slice(done - size, done), slice(done, done + size)
            with _threads(threads) if size >= _SHARED else nullcontext():
                W[following].addmm_(U[rounded, following].T, W[rounded], alpha=-1)
    return QuantizedWeight(grid, codes[torch.argsort(order)].T.contiguous())


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _inverse_factor(statistics: InputStatistics, order: torch.Tensor) -> torch.Tensor:
    """The upper triangular U with H⁻¹ = UᵀU, of H = XᵀX in an order of columns, damped until it is positive definite.

    H = RRᵀ with R upper triangular is a Cholesky factorisation from the last row up; then U = R⁻¹.
    An input that is always zero is decoupled from the others, so that its weights are merely rounded; the damping is
    a share of what the others have on average. Besides the statistics, memory never holds more than two such matrices.
    """
    backwards = order.flip(0)
    H = statistics.shrunk_moment(backwards)
    if not bool(H.isfinite().all()):
        raise ArithmeticError("the input's second moment is not finite")
    diagonal = statistics.importance[order]
    live = diagonal != 0
    mean = float(diagonal[live].mean()) if live.any() else 1.0
    limit = _LARGEST_DAMPING * max(float(diagonal.max()), mean)
    H.diagonal()[~live.flip(0)] = mean
    damping = _DAMPING * mean
    while True:
        H.diagonal().add_(damping)
        L, failed = torch.linalg.cholesky_ex(H)
        if not failed:
            break
        if damping > limit:
            raise ArithmeticError("the input's second moment cannot be factorised")
        damping *= 10
    del H
    R = L.flip(0, 1)
    del L
    U = torch.eye(len(R), device=R.device).T  # column-major, which needs no copy
    torch.linalg.solve_triangular(R, U, upper=True, out=U)
    return U
