"""Learn the scales and tables of a quantized model, segment after segment through the whole of it."""

from __future__ import annotations

__all__ = ["Tuning", "tune"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import torch
from pydantic import BaseModel

from qxcompiler.calibration.samples import Sample
from qxcompiler.errors import CalibrationError, ModelError
from qxcompiler.graph import Site, Weight
from qxcompiler.packing import pack, unpack
from qxcompiler.progress import Track
from qxcompiler.quantizers import QuantizationResult
from qxcompiler.tuning.distillation import distil
from qxcompiler.tuning.executor import TorchModel
from qxcompiler.tuning.tunable import TunableWeight

# Of so many samples one is held back, to choose the best state by; of many samples, so many.
_ONE_IN, _MOST_HELD_BACK = 16, 8

Keep = Callable[[Weight, QuantizationResult], QuantizationResult]


class Tuning(BaseModel):
    """What tuning reached.

    Attributes:
        samples: how many were learned from.
        held_back: how many chose the best state.
        output: the model's output that was compared with the original's.
        loss_before: the divergence from the original's predictions over the samples held back, in nats a position; of
            an output that is no `logits`, the squared error over the squared norm.
        loss_after: the same of what is kept.
    """

    samples: int
    held_back: int
    output: str
    loss_before: float
    loss_after: float


def tune(
    model: ir.Model,
    sites: Sequence[Site],
    results: Mapping[Weight, QuantizationResult],
    original: Callable[[Sample, str], np.ndarray],
    samples: Sequence[Sample],
    device: torch.device,
    seed: int,
    track: Track,
    keep: Keep,
) -> tuple[dict[Weight, QuantizationResult], Tuning]:
    """Learn the scales, and the tables of codebooks, of all quantized linear layers; codes stay as they are.

    Memory holds the codes as bytes, the weights that are not learned in float32, and what one segment computes.

    Args:
        model: normalized, not packed yet.
        sites: its sites.
        results: the quantized weights.
        original: an output of the original for a sample.
        samples: inputs of the model, two at least.
        device: where to compute.
        seed: of the order of the samples.
        track: shows progress.
        keep: what becomes of the new results.

    Raises:
        UndifferentiableError: the model has an operator without a derivative here.
        ModelError: nothing can be learned.
        CalibrationError: there are too few samples.
    """
    if len(samples) < 2:
        raise CalibrationError("--tune", "has one sample", "give a longer text, or more arrays")
    looked_up = {site.weight for site in sites if site.kind == "embedding"}
    walked = {site.weight for site in sites if not site.in_subgraph}
    tunable: dict[Weight, TunableWeight] = {}
    for weight, result in results.items():
        if weight in walked and weight not in looked_up and "scales" in result.packed.format.learnable:
            tunable[weight] = TunableWeight(unpack(result.packed), device)
    if not tunable:
        raise ModelError("--tune", "finds no weight whose scales can be learned", "leave it out")
    output = _output(model)
    torch_model = TorchModel(model, sites, output, device)
    others: dict[Weight, torch.Tensor] = {}

    def fixed(weight: Weight) -> torch.Tensor:
        if weight not in others:
            matrix = results[weight].decode() if weight in results else weight.matrix()
            others[weight] = matrix.to(device)
        return others[weight]

    step = max(_ONE_IN, -(-len(samples) // _MOST_HELD_BACK))
    held_back = samples[::step]
    learned_from = [sample for index, sample in enumerate(samples) if index % step]
    order = np.random.default_rng(seed).permutation(len(learned_from))
    before, after = distil(
        torch_model,
        tunable,
        fixed,
        lambda sample: original(sample, output),
        [learned_from[place] for place in order],
        held_back,
        track,
        is_logits=output == "logits",
    )
    tuned = dict(results)
    for weight, learned in tunable.items():
        tuned[weight] = keep(weight, replace(results[weight], packed=pack(learned.quantized())))
    said = Tuning(
        samples=len(learned_from), held_back=len(held_back), output=output, loss_before=before, loss_after=after
    )
    return tuned, said


def _output(model: ir.Model) -> str:
    """The logits, or else the first output."""
    names = [value.name or "" for value in model.graph.outputs]
    return "logits" if "logits" in names else names[0]
