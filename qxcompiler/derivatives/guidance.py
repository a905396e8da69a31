"""How much an error in every linear layer's output counts in the model's output, token by token."""

from __future__ import annotations

__all__ = ["token_weights"]

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from qxcompiler.calibration.samples import Sample
from qxcompiler.calibration.segment_runner import TokenWeights
from qxcompiler.derivatives.executor import LOGITS, TorchModel
from qxcompiler.graph import Site
from qxcompiler.progress import Track


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
    weights: dict[Site, list[Tensor]] = {}

    def observe(site: Site, Y: Tensor) -> Tensor:
        if not Y.requires_grad:
            Y = Y.detach().requires_grad_()
        Y.register_hook(partial(keep, site))  # type: ignore[no-untyped-call]
        return Y

    def keep(site: Site, slope: Tensor) -> None:
        found[site] = slope.square().mean(site.activation_axis).reshape(-1)

    blocks: list[Tensor] = []
    positions = 0
    for sample in track(samples, "guide"):
        found: dict[Site, Tensor] = {}
        with torch.enable_grad():
            y = model(sample, lambda site: site.weight.matrix().to(model.device), observe)
        if y.requires_grad:
            torch.autograd.backward(y, _drawn(y.detach(), generator, is_logits=model.output == LOGITS))
        positions += math.prod(y.shape[:-1])
        finite = bool(y.isfinite().all())
        del y
        if found:
            # one block of memory: many small ones, between what a sample needs on the way, would keep that apart
            block = torch.cat([*found.values()])
            blocks.append(block if finite and bool(block.isfinite().all()) else block.zero_())
            for site, each in zip(found, torch.split(block, [len(each) for each in found.values()]), strict=True):
                weights.setdefault(site, []).append(each)
    for block in blocks:
        block /= positions
    return weights


def _drawn(y: Tensor, generator: torch.Generator, *, is_logits: bool) -> Tensor:
    """A random derivative by the output, whose square has the Fisher matrix for its mean."""
    if not is_logits:
        return torch.randint(0, 2, y.shape, generator=generator).to(y) * 2 - 1
    p = y.float().softmax(-1).reshape(-1, y.shape[-1])
    p[~p.isfinite().all(-1)] = 1  # nothing can be drawn; the derivative is not finite either
    labels = torch.multinomial(p.cpu(), 1, generator=generator).to(p.device)
    return p.scatter_add(1, labels, torch.full_like(labels, -1, dtype=p.dtype)).reshape(y.shape).to(y)
