"""What quantizers need to know of a linear site's input, collected as a stream."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["InputStatistics"]


@dataclass
class InputStatistics:
    """Statistics of an activation X of shape [tokens, K], over all tokens seen so far.

    Attributes:
        second_moment: float32 [K, K]: the mean of XᵀX over tokens.
        mean: float32 [K].
        largest: float32 [K]: the largest magnitude in every channel.
        tokens: how many rows were seen.
    """

    second_moment: torch.Tensor
    mean: torch.Tensor
    largest: torch.Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, in_features: int, device: torch.device) -> InputStatistics:
        """Statistics of no tokens, for K = in_features."""
        zeros = torch.zeros(in_features, device=device)
        return cls(torch.zeros(in_features, in_features, device=device), zeros, zeros.clone())

    def add(self, X: torch.Tensor) -> None:
        """Take in more tokens: X is [tokens, K]."""
        X = X.to(self.mean)
        if not X.shape[0]:
            return
        total = self.tokens + X.shape[0]
        self.second_moment.addmm_(X.T, X, beta=self.tokens / total, alpha=1 / total)
        self.mean.mul_(self.tokens / total).add_(X.sum(0), alpha=1 / total)
        torch.maximum(self.largest, X.abs().amax(0), out=self.largest)
        self.tokens = total

    @property
    def importance(self) -> torch.Tensor:
        """The diagonal of the second moment, float32 [K]: how much an error in each input weighs."""
        return self.second_moment.diagonal()
