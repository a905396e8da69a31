"""Perplexity of a language model, and how far it is from its reference."""

from __future__ import annotations

__all__ = ["ROWS", "LanguageEvaluation", "evaluate_language", "kl_divergence"]

import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy.typing as npt
import torch
from pydantic import BaseModel

from qxcompiler.calibration.samples import Sample
from qxcompiler.errors import CalibrationError, ModelError
from qxcompiler.evaluation.running import Runner

ROWS = 128  # positions in the softmax at once, to bound memory with large vocabularies


class LanguageEvaluation(BaseModel):
    """How well a model predicts text, and how closely it follows its reference.

    Attributes:
        windows: how many windows were scored, each on its own.
        tokens: how many tokens were predicted, the first of each window not among them.
        perplexity: exp of the mean negative log-likelihood of these tokens.
        reference_perplexity: the same of the reference model.
        kl_divergence: mean of D(reference || model) over the predicted positions, in nats per token.
        top1_agreement: share of the predicted positions where both find the same token most likely.
        seconds: time spent in the model under measurement.
    """

    kind: Literal["language"] = "language"
    windows: int
    tokens: int
    perplexity: float
    reference_perplexity: float | None = None
    kl_divergence: float | None = None
    top1_agreement: float | None = None
    seconds: float


def evaluate_language(
    model: Runner,
    reference: Runner | None,
    pairs: Iterable[tuple[Sample, Sample]],
    run: Callable[[Sample], npt.NDArray[Any]] | None = None,
) -> LanguageEvaluation:
    """Score a language model, holding one window at a time.

    Args:
        model: a model with `logits` of shape [batch, length, vocabulary].
        reference: the model to compare with, over the same vocabulary.
        pairs: each window as inputs of the model and as inputs of the reference.
        run: gives the model's logits for a window; by default in one run.

    Raises:
        ModelError: a model cannot be run, or its logits do not fit or are not finite.
        CalibrationError: no window has two tokens.
    """
    windows = tokens = 0
    seconds = 0.0
    sums = torch.zeros(4, dtype=torch.float64)
    for sample, reference_sample in pairs:
        began = time.perf_counter()
        logits = _logits(model, sample) if run is None else _as_tensor(run(sample))
        seconds += time.perf_counter() - began
        expected = None if reference is None else _logits(reference, reference_sample)
        if expected is not None and expected.shape != logits.shape:
            raise ModelError(
                model.path,
                f"logits of shape {list(logits.shape)}, but {list(expected.shape)} in the reference",
                "give a reference with the same vocabulary",
            )
        ids = _token_ids(sample)
        if logits.shape[:2] != ids.shape:
            raise ModelError(
                model.path,
                f"logits of shape {list(logits.shape)} for tokens of shape {list(ids.shape)}",
                "give a model with logits at every position",
            )
        for row, window in enumerate(ids):
            targets = window[1:]
            for start in range(0, len(targets), ROWS):
                rows = slice(start, min(start + ROWS, len(targets)))
                sums += _scores(logits[row, rows], None if expected is None else expected[row, rows], targets[rows])
            windows += 1
            tokens += len(targets)
    if tokens == 0:
        raise CalibrationError(model.path, "windows without a second token", "give a --length of at least 2")
    nll, reference_nll, divergence, agreement = (sums / tokens).unbind()
    if sums.isnan().any():
        raise ModelError(model.path, "logits hold NaN or infinity", "compile again with more bits, or report it")
    if sums.isinf().any():
        raise ModelError(
            model.path,
            "logits give a token of the text, or of the reference, no chance at all (-inf)",
            "check the text",
        )
    return LanguageEvaluation(
        windows=windows,
        tokens=tokens,
        perplexity=nll.exp().item(),
        reference_perplexity=reference_nll.exp().item() if reference else None,
        kl_divergence=divergence.item() if reference else None,
        top1_agreement=agreement.item() if reference else None,
        seconds=seconds,
    )


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """D(p || q) of each row, in nats: [rows] from the logarithms [rows, vocabulary].

    What has no chance in p adds nothing, whatever q says of it.
    """
    possible = log_p > -torch.inf
    return torch.where(possible, log_p.exp() * (log_p - log_q), 0).sum(-1)


def _scores(logits: torch.Tensor, expected: torch.Tensor | None, targets: torch.Tensor) -> torch.Tensor:
    """Sums over rows of -log q(target), -log p(target), D(p || q) and [argmax p = argmax q]."""
    log_q = logits.float().log_softmax(-1)
    nll = -log_q.gather(-1, targets[:, None]).double().sum()
    if expected is None:
        return torch.stack([nll, *torch.zeros(3, dtype=torch.float64)])
    log_p = expected.float().log_softmax(-1)
    reference_nll = -log_p.gather(-1, targets[:, None]).double().sum()
    divergence = kl_divergence(log_p, log_q).double().sum()
    agreement = (log_p.argmax(-1) == log_q.argmax(-1)).double().sum()
    return torch.stack([nll, reference_nll, divergence, agreement])


def _logits(model: Runner, sample: Sample) -> torch.Tensor:
    return _as_tensor(model.run(sample, ["logits"])[0])


def _as_tensor(logits: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(logits if logits.dtype.kind == "f" else logits.astype("float32"))


def _token_ids(sample: Sample) -> torch.Tensor:
    ids = next(value for name, value in sample.items() if name.endswith("input_ids"))
    return torch.from_numpy(ids.astype("int64"))
