"""Learn the scales and tables of a quantized model, segment after segment through the whole of it."""

from __future__ import annotations

__all__ = ["Tuner", "Tuning"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir
import torch
from pydantic import BaseModel

from qxcompiler.calibration.samples import Sample
from qxcompiler.derivatives import LOGITS, TorchModel, compared_output
from qxcompiler.errors import CalibrationError, ModelError
from qxcompiler.formats import Format
from qxcompiler.graph import Site, Weight
from qxcompiler.packing import pack, unpack
from qxcompiler.progress import Track
from qxcompiler.quantizers import Keep, QuantizationResult, sharing_a_table
from qxcompiler.tuning.distillation import Example, distil
from qxcompiler.tuning.tunable import TunableWeight

# Of so many samples one is held back, to choose the best state by; of many samples, so many.
_ONE_IN, _MOST_HELD_BACK = 16, 8


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


class Tuner:
    """Learns the scales, and the tables of codebooks, of all quantized linear layers; codes stay as they are.

    It is made before anything is quantized, so that a model that cannot be tuned is refused at once. Memory holds the
    codes as bytes, the weights that are not learned in float32, and what one segment computes.

    Args:
        model: normalized, not packed yet.
        sites: its sites.
        formats: the format of every weight that will be quantized.
        samples: inputs of the model, two at least.
        device: where to compute.

    Attributes:
        samples: as given.
        output: the name of the model's output that is compared.

    Raises:
        UndifferentiableError: the model has an operator without a derivative here.
        ModelError: nothing can be learned.
        CalibrationError: there are too few samples.
    """

    def __init__(
        self,
        model: ir.Model,
        sites: Sequence[Site],
        formats: Mapping[Weight, Format],
        samples: Sequence[Sample],
        device: torch.device,
    ) -> None:
        if len(samples) < 2:
            raise CalibrationError("--tune", "has one sample", "give a longer text, or more arrays")
        looked_up = {site.weight for site in sites if site.kind == "embedding"}
        learned = {
            weight: fmt for weight, fmt in formats.items() if "scales" in fmt.learnable and weight not in looked_up
        }
        self._together = sharing_a_table(sites, learned)
        if not learned:
            raise ModelError("--tune", "finds no weight whose scales can be learned", "leave it out")
        self.output = compared_output(model)
        self.samples, self._device = samples, device
        self._model = TorchModel(model, sites, self.output, device)

    def tune(
        self,
        results: Mapping[Weight, QuantizationResult],
        original: Callable[[int], np.ndarray],
        seed: int,
        track: Track,
        keep: Keep,
    ) -> tuple[dict[Weight, QuantizationResult], Tuning]:
        """Learn from the quantized weights on.

        Args:
            results: the quantized weights.
            original: the original's `output` for a sample, by its place among `samples`.
            seed: of the order of the samples.
            track: shows progress.
            keep: what becomes of the new results.

        Returns:
            All results, the learned ones anew, and what was reached.

        Raises:
            ModelError: the quantized model is infinitely far from the original.
        """
        device = self._device
        tunable: dict[Weight, TunableWeight] = {}
        for weights in self._together:
            for weight in weights:
                quantized, first = unpack(results[weight].packed), tunable.get(weights[0])
                partner = first if first is not None and first.has_table_of(quantized) else None
                tunable[weight] = TunableWeight(quantized, device, partner)
        kept: dict[Weight, torch.Tensor] = {}

        def fixed(weight: Weight) -> torch.Tensor:
            if weight not in kept:
                matrix = results[weight].decode() if weight in results else weight.matrix()
                kept[weight] = matrix.to(device)
            return kept[weight]

        step = max(_ONE_IN, -(-len(self.samples) // _MOST_HELD_BACK))
        examples = [Example(sample, partial(original, index)) for index, sample in enumerate(self.samples)]
        held_back = examples[::step]
        learned_from = [example for index, example in enumerate(examples) if index % step]
        order = np.random.default_rng(seed).permutation(len(learned_from))
        before, after = distil(
            self._model,
            tunable,
            fixed,
            [learned_from[place] for place in order],
            held_back,
            track,
            is_logits=self.output == LOGITS,
        )
        tuned = dict(results)
        for weight, learned in tunable.items():
            tuned[weight] = keep(weight, replace(results[weight], packed=pack(learned.quantized())))
        counts = {"samples": len(learned_from), "held_back": len(held_back)}
        return tuned, Tuning(**counts, output=self.output, loss_before=before, loss_after=after)
