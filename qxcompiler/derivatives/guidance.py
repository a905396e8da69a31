"""How much an error in every linear layer's output counts in the model's output, token by token."""

from __future__ import annotations

__all__ = ["attention_weights", "token_weights"]

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qxcompiler.calibration.samples import Sample
from qxcompiler.calibration.segment_runner import TokenWeights
from qxcompiler.derivatives.executor import LOGITS, Attend, Observe, TorchModel, UndifferentiableError
from qxcompiler.graph import Site
from qxcompiler.memory import give_back
from qxcompiler.progress import Track

_ATTENDING = ("query", "key")


def token_weights(model: TorchModel, samples: Sequence[Sample], seed: int, track: Track) -> TokenWeights:
    """The diagonal of the Fisher matrix of every linear layer's output, its mean over the output's features.

    For small errors dY of a layer that are independent of each other, the divergence of the model's predictions, its
    mean over positions, is half the sum over tokens of weight times |dY|² (GuidedQuant, Kim et al. 2025, with one
    group; labels drawn from the model's own predictions make it the Fisher matrix, as in Kunstner et al. 2019). Of an
    output that is no `logits` it is half the squared error, by random signs (Hutchinson 1989).

    Args:
        model: computes one output, with the original's weights.
        samples: inputs of the model.
        seed: of labels and signs.
        track: shows progress.

    Returns:
        For every linear site that the output depends on, float32 [tokens] a sample. A sample whose derivative is not
        finite weighs nothing.
    """
    generator = torch.Generator().manual_seed(seed)

    def slopes(sample: Sample, observe: Observe) -> tuple[Tensor, int]:
        y = model(sample, lambda site: site.weight.matrix().to(model.device), observe)
        if y.requires_grad:
            torch.autograd.backward(y, _drawn(y.detach(), generator, is_logits=model.output == LOGITS))
        return y.detach(), math.prod(y.shape[:-1])

    return _mean_squares(samples, slopes, track)


def attention_weights(model: TorchModel, samples: Sequence[Sample], seed: int, track: Track) -> TokenWeights:
    """The same of queries and keys, for the divergence of the attention's rows instead of the predictions'.

    For small errors dY of a query or key, the divergence of the softmax's rows that it enters, their mean over heads,
    positions and samples, is half the sum over tokens of weight times |dY|². QuantX judges formats of queries and keys
    by what attention maps lose; the Fisher matrix of the rows stands for it, as that of the predictions does above: a
    label is drawn from every row.

    Args:
        model, samples, seed, track: as above.

    Returns:
        For every linear site of the role query or key, float32 [tokens] a sample.

    Raises:
        UndifferentiableError: the model has none that a softmax over the last axis follows.
    """
    generator = torch.Generator().manual_seed(seed)

    def slopes(sample: Sample, observe: Observe) -> tuple[Tensor, int]:
        def apart(site: Site, Y: Tensor) -> Tensor:
            if site.role not in _ATTENDING:
                return Y
            return observe(site, Y.detach())  # layers before are not asked

        attend: Attend = partial(_Rows.apply, generator)
        y = model(sample, lambda site: site.weight.matrix().to(model.device), apart, attend)
        if y.requires_grad:
            torch.autograd.backward(y, torch.zeros_like(y))
        return y.detach(), 1

    weights = _mean_squares(samples, slopes, track)
    if not weights:
        problem, remedy = "has no attention whose rows are found", "choose another --error, such as divergence"
        raise UndifferentiableError("the model", problem, remedy)
    return weights


def _mean_squares(
    samples: Sequence[Sample], slopes: Callable[[Sample, Observe], tuple[Tensor, int]], track: Track
) -> TokenWeights:
    """Of the derivatives by every observed output, over its features and what all samples count for.

    Args:
        samples: inputs of the model.
        slopes: computes the derivatives for a sample; gives the model's output, and how often it counts.
        track: shows progress.
    """
    weights: dict[Site, list[Tensor]] = {}

    def observe(site: Site, Y: Tensor) -> Tensor:
        if not Y.requires_grad:
            Y = Y.detach().requires_grad_()
        Y.register_hook(partial(keep, site))  # type: ignore[no-untyped-call]
        return Y

    def keep(site: Site, slope: Tensor) -> None:
        found[site] = slope.square().mean(site.activation_axis).reshape(-1)

    blocks: list[Tensor] = []
    total = 0
    for sample in track(samples, "guide"):
        found: dict[Site, Tensor] = {}
        with torch.enable_grad():
            y, count = slopes(sample, observe)
        total += count
        finite = bool(y.isfinite().all())
        del y
        give_back()
        if found:
            # one block of memory: many small ones, between what a sample needs on the way, would keep that apart
            block = torch.cat([*found.values()])
            blocks.append(block if finite and bool(block.isfinite().all()) else block.zero_())
            for site, each in zip(found, torch.split(block, [len(each) for each in found.values()]), strict=True):
                weights.setdefault(site, []).append(each)
    for block in blocks:
        block /= total
    return weights


class _Rows(torch.autograd.Function):
    """Rows of an attention; the derivative is that of -log p of a label from each, over the root of their number."""

    @staticmethod
    def forward(ctx: Any, generator: torch.Generator, p: Tensor) -> Tensor:
        ctx.generator = generator
        ctx.save_for_backward(p)
        return p.clone()

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[None, Tensor]:
        (p,) = ctx.saved_tensors
        if not p.numel():
            return None, torch.zeros_like(p)
        rows = p.float().reshape(-1, p.shape[-1])
        known = rows.isfinite().all(-1) & (rows.sum(-1) > 0)
        drawn_from = torch.where(known[:, None], rows, 1.0).cpu()
        labels = torch.multinomial(drawn_from, 1, generator=ctx.generator).to(p.device)
        slope = torch.zeros_like(rows).scatter_(1, labels, -known[:, None].float() / rows.gather(1, labels))
        return None, (slope / math.sqrt(len(rows))).reshape(p.shape).to(p)


def _drawn(y: Tensor, generator: torch.Generator, *, is_logits: bool) -> Tensor:
    """A random derivative by the output, whose square has the Fisher matrix for its mean."""
    if not is_logits:
        return torch.randint(0, 2, y.shape, generator=generator).to(y) * 2 - 1
    p = y.float().softmax(-1).reshape(-1, y.shape[-1])
    p[~p.isfinite().all(-1)] = 1  # nothing can be drawn; the derivative is not finite either
    labels = torch.multinomial(p.cpu(), 1, generator=generator).to(p.device)
    return p.scatter_add(1, labels, torch.full_like(labels, -1, dtype=p.dtype)).reshape(y.shape).to(y)
