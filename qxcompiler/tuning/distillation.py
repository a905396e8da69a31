"""Learn scales and tables of quantized weights so that the whole model follows the original's outputs."""

from __future__ import annotations

__all__ = ["Example", "distil"]

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qxcompiler.calibration.samples import Sample
from qxcompiler.derivatives import TorchModel
from qxcompiler.errors import ModelError
from qxcompiler.evaluation.language import ROWS, kl_divergence
from qxcompiler.graph import Site, Weight
from qxcompiler.memory import give_back
from qxcompiler.progress import Track
from qxcompiler.tuning.tunable import TunableWeight

_log = logging.getLogger(__name__)

_CHECKS = 4  # how often, besides the start, the samples held back are looked at
_WARM_UP = 0.1  # the share of the steps during which the rate rises
_STORED = 0.1  # the share of the steps, the last, in which weights are as they will be stored
_RATE = 5e-4  # SmolLM2 with `lut3g128`: 3e-3 does harm


@dataclass(frozen=True)
class Example:
    """What to learn from.

    Attributes:
        inputs: of the model.
        expected: computes the original's output for them; it may be large, and is not kept.
    """

    inputs: Sample
    expected: Callable[[], np.ndarray]


def distil(
    model: TorchModel,
    tunable: Mapping[Weight, TunableWeight],
    fixed: Callable[[Weight], Tensor],
    examples: Sequence[Example],
    held_back: Sequence[Example],
    track: Track,
    *,
    is_logits: bool,
    rate: float = _RATE,
) -> tuple[float, float]:
    """Minimise D(original || quantized) of predictions (Hinton et al. 2015, at temperature 1), or the squared error.

    An example is a step of Adam, whose rate rises, then falls as a cosine. The state that does best on the samples held
    back is kept, and that may be the first. One whose derivative is not finite is no step.

    Args:
        model: the model, which computes one output.
        tunable: what is learned, in place.
        fixed: the matrix of every other weight.
        examples: what to learn from, each once.
        held_back: what to choose the best state on.
        track: shows progress.
        is_logits: whether the output is compared as logits, and not number by number.
        rate: Adam's largest step.

    Returns:
        The loss over the samples held back, before and after.

    Raises:
        ModelError: the loss before is not finite.
    """
    parameters = list(dict.fromkeys(parameter for weight in tunable.values() for parameter in weight.parameters))
    optimizer = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.95))
    total = len(examples)
    warm_up = max(1, round(_WARM_UP * total))

    def share(step: int) -> float:
        rising = (step + 1) / warm_up
        falling = 0.5 * (1 + math.cos(math.pi * max(step - warm_up, 0) / max(total - warm_up, 1)))
        return min(rising, falling)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    measure = divergence if is_logits else squared_error

    def loss(example: Example, stored: bool) -> Tensor:
        def matrix(site: Site) -> Tensor:
            weight = tunable.get(site.weight)
            return fixed(site.weight) if weight is None else weight.matrix(stored=stored)

        expected = torch.from_numpy(np.asarray(example.expected(), np.float32)).to(model.device)
        return measure(model(example.inputs, matrix), expected)

    def check() -> float:
        with torch.no_grad():
            losses = [float(loss(example, stored=True)) for example in held_back]
        return sum(losses) / len(losses)

    before = best = check()
    if not math.isfinite(before):
        problem = (
            f"the quantized model is infinitely far from the original (a loss of {before}) on the samples held back"
        )
        raise ModelError("--tune", problem, "compile without it, or leave what overflows in float with --keep")
    _log.info("loss before tuning: %.4f", best)
    state = [parameter.detach().clone() for parameter in parameters]
    every = max(1, total // _CHECKS)
    for step, example in enumerate(track(examples, "tune")):
        optimizer.zero_grad()
        torch.autograd.backward(loss(example, stored=step >= (1 - _STORED) * total))
        slopes = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not all(bool(slope.isfinite().all()) for slope in slopes):
            _log.info("step %d: left out, its derivative is not finite", step + 1)
            optimizer.zero_grad()
        optimizer.step()
        schedule.step()
        give_back()
        if (step + 1) % every == 0 or step + 1 == total:
            now = check()
            _log.info("loss after %d of %d steps: %.4f", step + 1, total, now)
            if now < best:
                best, state = now, [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, kept in zip(parameters, state, strict=True):
            parameter.copy_(kept)
    return before, best


def divergence(logits: Tensor, expected: Tensor) -> Tensor:
    """The mean of D(p || q) over positions, of p and q that are proportional to exp of [..., vocabulary]."""
    q, p = (each.reshape(-1, each.shape[-1]) for each in (logits, expected))
    return _Divergence.apply(q, p) / len(q)  # type: ignore[no-untyped-call, no-any-return]


def squared_error(y: Tensor, expected: Tensor) -> Tensor:
    """|y - expected|² / |expected|²."""
    expected = expected.to(y)
    return (y - expected).square().sum() / expected.square().sum()


class _Divergence(torch.autograd.Function):
    """The sum of D(p || q) over rows; its derivative by the logits is q - p, and takes no more memory than they do."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, expected: Tensor) -> Tensor:
        total = logits.new_zeros((), dtype=torch.float32)
        ctx.slope = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for start in range(0, len(logits), ROWS):
            rows = slice(start, start + ROWS)
            log_q, log_p = (each[rows].float().log_softmax(-1) for each in (logits, expected))
            total += kl_divergence(log_p, log_q).sum()
            if ctx.slope is not None:
                torch.sub(log_q.exp_(), log_p.exp_(), out=ctx.slope[rows])
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        mine, ctx.slope = ctx.slope, None  # for one use: it is changed in place
        return mine.mul_(slope), None
