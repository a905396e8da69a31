"""What quantizers need to know of a linear site's input, collected as a stream."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from qxcompiler.formats import block_size, rotate

__all__ = ["InputRows", "InputStatistics"]

# The squares of magnitudes in between, and sums of a billion of them, are well within float32.
_SMALLEST, _LARGEST = 2.0**-32, 2.0**32
# Rows of XᵀX that are computed together, from the diagonal on: few enough to save nearly half the work.
_PANEL = 256
# Rows of X that are kept where some are asked for.
_ROWS = 256


@dataclass
class InputStatistics:
    """Statistics of an activation X of shape [tokens, K], over all tokens seen so far that hold numbers only.

    Attributes:
        mean: float32 [K], divided by the unit.
        largest: float32 [K]: the largest magnitude in every channel, divided by the unit.
        tokens: how many rows were seen, or what they weigh in all.
        rows: how many were seen, whatever they weigh.
        skipped: how many more were left out, since they hold NaN or infinity.
        unit: a power of two: 1, unless the largest magnitude is so large or small that its square has no float32.
        shrinkage: how much smaller `shrunk_moment` has what two inputs have in common.
        drift: float32 [K, K]: the mean of (X̃ - X)ᵀX over tokens, divided by unit², where X̃ was given with all of them:
            what the original model has in the place of X.
    """

    _moment: torch.Tensor  # below the diagonal only up to date where `_symmetric`
    mean: torch.Tensor
    largest: torch.Tensor
    _symmetric: bool = True
    tokens: float = 0
    rows: int = 0
    skipped: int = 0
    unit: float = 1.0
    shrinkage: float = 0.0
    drift: torch.Tensor | None = None
    _corresponds: bool = True

    @classmethod
    def empty(cls, in_features: int, device: torch.device) -> InputStatistics:
        """Statistics of no tokens, for K = in_features."""
        zeros = torch.zeros(in_features, device=device)
        return cls(torch.zeros(in_features, in_features, device=device), zeros, zeros.clone())

    def add(self, X: torch.Tensor, weights: torch.Tensor | None = None, original: torch.Tensor | None = None) -> None:
        """Take in more tokens: X is [tokens, K], and each counts as often as its weight says, [tokens], or once.

        What the original model has in their place is [tokens, K], too. Where that is once not given, or are not as many
        tokens, which then take other ways there (as in a mixture of experts), the drift is not known.
        """
        if original is None or original.shape != X.shape:
            self._corresponds, self.drift = False, None
        X = X.to(self.mean)
        if not X.shape[0]:
            return
        drift = original.to(X) - X if original is not None and self._corresponds else None
        largest = X.abs().amax(0)
        if not bool(largest.isfinite().all()) or (drift is not None and not bool(drift.isfinite().all())):
            finite = X.isfinite().all(1)
            if drift is not None:
                finite &= drift.isfinite().all(1)
            self.skipped += int((~finite).sum())
            weights = None if weights is None else weights.to(X)[finite]
            self.add(X[finite], weights, None if drift is None else (X + drift)[finite])
            return
        self._choose_unit(float(largest.max()))
        if self.unit != 1:
            X, largest = X / self.unit, largest / self.unit
        weighted = X if weights is None else X * weights.to(X).unsqueeze(1)
        total = self.tokens + (X.shape[0] if weights is None else float(weights.sum()))
        if not total:
            return
        for start in range(0, X.shape[1], _PANEL):
            rows = slice(start, start + _PANEL)
            self._moment[rows, start:].addmm_(
                weighted[:, rows].T, X[:, start:], beta=self.tokens / total, alpha=1 / total
            )
        self._symmetric = False
        if drift is not None:
            if self.drift is None:
                self.drift = torch.zeros_like(self._moment)
            self.drift.addmm_(drift.T / self.unit, weighted, beta=self.tokens / total, alpha=1 / total)
        self.mean.mul_(self.tokens / total).add_(weighted.sum(0), alpha=1 / total)
        torch.maximum(self.largest, largest, out=self.largest)
        self.tokens = total
        self.rows += X.shape[0]

    def _choose_unit(self, largest: float) -> None:
        """The unit for what was seen and X, whose largest magnitude is given."""
        largest = max(largest, self.unit * float(self.largest.max()))
        ordinary = not largest or _SMALLEST <= largest <= _LARGEST
        unit = 1.0 if ordinary else 2.0 ** math.floor(math.log2(largest))
        if unit != self.unit:
            ratio = self.unit / unit
            if ratio < 1:  # otherwise all that was seen is zero
                for moment in (self._moment, *([] if self.drift is None else [self.drift])):
                    moment.mul_(ratio).mul_(ratio)
                self.mean.mul_(ratio)
                self.largest.mul_(ratio)
            self.unit = unit

    @property
    def second_moment(self) -> torch.Tensor:
        """The mean of XᵀX over tokens, divided by unit²: float32 [K, K]."""
        if not self._symmetric:
            for end in range(_PANEL, len(self._moment), _PANEL):
                rows = slice(end - _PANEL, end)
                self._moment[end:, rows] = self._moment[rows, end:].T
            self._symmetric = True
        return self._moment

    def squared_norm(self, matrix: torch.Tensor) -> float:
        """The mean over tokens of |x matrixᵀ|², divided by unit²: matrix is [N, K]."""
        return max(float(((matrix @ self.second_moment) * matrix).sum(dtype=torch.float64)), 0.0)

    def shrunk(self, share: float) -> InputStatistics:
        """The same, for other text than was seen: what two inputs have in common is trusted less than what one has.

        XᵀX shrinks towards its diagonal (Schäfer and Strimmer 2005, "A shrinkage approach to large-scale covariance
        matrix estimation", target D), by a share for other kinds of text, and by as much more as K inputs outweigh
        the n rows that they were seen in: 1 - (1 - share) / (1 + K / n).
        """
        noise = len(self.mean) / max(self.rows, 1)
        return replace(self, shrinkage=1 - (1 - share) / (1 + noise))

    def shrunk_moment(self, order: torch.Tensor | None = None) -> torch.Tensor:
        """A copy of the second moment, shrunk, with its rows and columns in an order: float32 [K, K]."""
        moment = self.second_moment
        return self._shrunk(moment.clone() if order is None else moment[order][:, order])

    def shrunk_drift(self) -> torch.Tensor | None:
        """A copy of the drift, if it is known, shrunk like the second moment: float32 [K, K]."""
        return None if self.drift is None else self._shrunk(self.drift.clone())

    def _shrunk(self, moment: torch.Tensor) -> torch.Tensor:
        diagonal = moment.diagonal().clone()
        moment.mul_(1 - self.shrinkage).diagonal().copy_(diagonal)
        return moment

    def rotated(self) -> InputStatistics:
        """Those of XR (`formats/rotation.py`), shrunk before, and the largest magnitudes as bounds."""
        moment = rotate(rotate(self.shrunk_moment()).T)
        largest = self.largest.reshape(-1, block_size(len(self.largest)))
        bound = (largest.sum(1, keepdim=True) / math.sqrt(largest.shape[1])).expand_as(largest).reshape(-1)
        drift = self.shrunk_drift()
        drift = None if drift is None else rotate(rotate(drift).T).T
        return replace(self, _moment=moment, mean=rotate(self.mean), largest=bound, shrinkage=0.0, drift=drift)

    @property
    def importance(self) -> torch.Tensor:
        """The diagonal of the second moment, float32 [K]: how much an error in each input weighs."""
        return self._moment.diagonal()


@dataclass
class InputRows:
    """Some rows of an activation X of shape [tokens, K], drawn from all seen so far that hold numbers only.

    Attributes:
        rows: float32 [R, K], R at most 256; every row seen is as likely as any other.
        largest: float32 [K]: the largest magnitude in every channel, over all rows seen.
    """

    rows: torch.Tensor
    largest: torch.Tensor
    _draws: torch.Generator
    _lots: torch.Tensor  # [R]: the largest that were drawn

    @classmethod
    def empty(cls, in_features: int, device: torch.device) -> InputRows:
        """No rows, for K = in_features."""
        rows = torch.zeros(0, in_features, device=device)
        return cls(rows, torch.zeros(in_features, device=device), torch.Generator().manual_seed(0), torch.zeros(0))

    def add(self, X: torch.Tensor, weights: torch.Tensor | None = None, original: torch.Tensor | None = None) -> None:
        """Take in more tokens: X is [tokens, K]. How often they count makes no difference, nor what they were."""
        X = X.to(self.rows)
        X = X[X.isfinite().all(1)]
        if not X.shape[0]:
            return
        torch.maximum(self.largest, X.abs().amax(0), out=self.largest)
        lots = torch.cat([self._lots, torch.rand(X.shape[0], generator=self._draws)])
        self._lots, kept = lots.topk(min(_ROWS, len(lots)))
        self.rows = torch.cat([self.rows, X])[kept.to(X.device)]
