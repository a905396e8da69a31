"""The next token, from what a model predicts."""

from __future__ import annotations

__all__ = ["pick"]

import numpy as np
import numpy.typing as npt


def pick(logits: npt.NDArray[np.float32], temperature: float, top_p: float, draws: np.random.Generator) -> int:
    """The next token: the most likely, or drawn from the nucleus."""
    if temperature == 0:
        return int(logits.argmax())
    # With the largest at 0, and in float64, no temperature overflows but to -inf.
    with np.errstate(over="ignore"):
        weights = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    tokens = np.argsort(-weights, kind="stable") if top_p < 1 else np.arange(len(weights))
    sums = weights[tokens].cumsum()
    nucleus = int(np.searchsorted(sums - weights[tokens], top_p * sums[-1])) if top_p < 1 else len(sums)
    sums = sums[: max(nucleus, 1)]
    return int(tokens[min(np.searchsorted(sums, draws.random() * sums[-1], side="right"), len(sums) - 1)])
