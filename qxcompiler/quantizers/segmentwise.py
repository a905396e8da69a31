"""Quantize a model segment after segment, each calibrated on the output of the quantized ones before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir
import torch

from qxcompiler.calibration.samples import Sample
from qxcompiler.calibration.segment_runner import TokenWeights, UnrunnableError
from qxcompiler.calibration.statistics import InputStatistics
from qxcompiler.calibration.walk import walk
from qxcompiler.errors import ModelError
from qxcompiler.formats import Format, rotate
from qxcompiler.graph import Site, Weight, find_segments
from qxcompiler.graph.model_file import first_cause
from qxcompiler.packing import PackedWeight, pack, unpack
from qxcompiler.progress import Track
from qxcompiler.quantizers.registry import find_quantizer

__all__ = ["Keep", "QuantizationResult", "quantize_segmentwise", "quantize_weight", "quantize_without_statistics"]


@dataclass(frozen=True)
class QuantizationResult:
    """One quantized weight.

    Attributes:
        packed: the codes, packed.
        quantizer: the algorithm that chose them.
        error: |X(W - Ŵ)ᵀ| / |XWᵀ| over the calibration samples, or |W - Ŵ| / |W| where there were none.
        reason: why it was rounded to nearest and not by the algorithm asked for, where that is so.
        skipped_tokens: how many rows of X were left out, since they hold NaN or infinity.
    """

    packed: PackedWeight
    quantizer: str
    error: float
    reason: str | None = None
    skipped_tokens: int = 0

    def decode(self) -> torch.Tensor:
        """The matrix that the codes stand for: float32 [N, K]."""
        return unpack(self.packed).decode()


Keep = Callable[[Weight, QuantizationResult], QuantizationResult]
"""Takes each result as soon as it is there, and gives it back as it shall be kept: in a file, say."""


def quantize_without_statistics(
    weight: Weight, fmt: Format, device: torch.device, quantizer: str = "rtn"
) -> QuantizationResult:
    """Quantize a weight, all its inputs counted alike: for a compile without samples.

    Raises:
        ModelError: the weight does not fit the format.
    """
    return quantize_weight(weight, fmt, quantizer, None, device)


def quantize_segmentwise(
    model: ir.Model,
    sites: Sequence[Site],
    formats: Mapping[Weight, Format],
    quantizer: str,
    samples: Sequence[Sample],
    device: torch.device,
    track: Track,
    token_weights: TokenWeights,
    known: Mapping[Weight, QuantizationResult],
    keep: Keep,
) -> dict[Weight, QuantizationResult]:
    """Quantize the weights named in `formats`, segment after segment.

    Memory holds one segment's weights and the activations that pass between segments. A weight that an embedding
    reads, or that is used in a subgraph alone, is rounded to nearest, for want of statistics, and so is one whose input
    no sample reaches or is never finite, or that comes after what onnxruntime cannot run by itself; one used in
    several segments is quantized with the statistics of the first.

    Args:
        model: a normalized model.
        sites: its sites.
        formats: the format of every weight to quantize.
        quantizer: the name of the algorithm.
        samples: inputs of the model.
        device: where the algebra on weights runs.
        track: shows progress.
        token_weights: how often each token counts in the statistics, where not once.
        known: results for some of the weights, which are taken as they are.
        keep: what becomes of the others' results.

    Raises:
        ModelError: the model fails to run on the samples, or a weight does not fit its format.
    """
    segments = find_segments(model, sites)
    walked = dict.fromkeys(site.weight for segment in segments for site in segment.sites)
    looked_up = {site.weight for site in sites if site.kind == "embedding"}
    rounded = [weight for weight in formats if weight in looked_up or weight not in walked]
    order = [*rounded, *(weight for weight in walked if weight in formats and weight not in looked_up)]
    results = dict(known)

    def left(weights: Sequence[Weight] = order) -> list[Weight]:
        return [weight for weight in weights if weight not in results]

    for weight in left(rounded):
        reason = None if weight in looked_up else "it is used in a body alone"
        results[weight] = keep(weight, _round(weight, formats[weight], device, reason))

    def current(weight: Weight) -> torch.Tensor:
        return results[weight].decode() if weight in results else weight.matrix()

    try:
        stops = walk(
            model,
            segments,
            samples,
            device,
            track=track,
            description="quantize",
            weight=current,
            token_weights=token_weights,
        )
        for stop in stops:
            todo = [weight for weight in stop.weights if weight in formats and weight not in results]
            statistics = stop.statistics(todo) if todo else {}
            for weight in todo:
                result = quantize_weight(weight, formats[weight], quantizer, statistics[weight], device)
                results[weight] = keep(weight, result)
                stop.weights[weight] = result.decode()
            if not left():
                break
    except UnrunnableError as error:
        reason = f"onnxruntime cannot run a part of the model by itself ({first_cause(error)})"
        for weight in left():
            results[weight] = keep(weight, _round(weight, formats[weight], device, reason))
    return {weight: results[weight] for weight in order}  # the same order however much was known


def _round(
    weight: Weight, fmt: Format, device: torch.device, reason: str | None = None, skipped: int = 0
) -> QuantizationResult:
    return replace(quantize_weight(weight, fmt, "rtn", None, device), reason=reason, skipped_tokens=skipped)


def quantize_weight(
    weight: Weight, fmt: Format, quantizer: str, statistics: InputStatistics | None, device: torch.device
) -> QuantizationResult:
    """Quantize a weight by an algorithm; round it to nearest, and say why, where that cannot be applied.

    Raises:
        ModelError: the weight does not fit the format.
    """
    skipped = 0 if statistics is None else statistics.skipped
    if statistics is not None and not statistics.tokens:
        reason = "its input is never finite" if skipped else "no sample reaches it"
        return _round(weight, fmt, device, reason, skipped)
    W = weight.matrix().to(device)
    try:
        quantize = find_quantizer(quantizer).quantize
        if fmt.rotated:
            quantized = quantize(rotate(W), fmt, None if statistics is None else statistics.rotated())
        else:
            quantized = quantize(W, fmt, statistics)
    except OverflowError as error:
        raise ModelError(
            f"weight '{weight.name}'",
            f"is too large for {fmt.name} ({error})",
            "leave it in float with --keep",
        ) from error
    except ArithmeticError as error:
        return _round(weight, fmt, device, f"{quantizer} cannot be applied ({error})", skipped)
    relative_error = _relative_error(W, quantized.decode(), statistics)
    return QuantizationResult(pack(quantized), quantizer, relative_error, skipped_tokens=skipped)


def _relative_error(W: torch.Tensor, quantized: torch.Tensor, statistics: InputStatistics | None) -> float:
    """|X(W - Ŵ)ᵀ| / |XWᵀ|, from XᵀX; every input alike without it."""

    def squared_norm(matrix: torch.Tensor) -> float:
        if statistics is None:
            return float(matrix.square().sum(dtype=torch.float64))
        return statistics.squared_norm(matrix)

    norm = squared_norm(W)
    return (squared_norm(W - quantized) / norm) ** 0.5 if norm else 0.0
