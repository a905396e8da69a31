"""Quantize a model segment after segment, each calibrated on the output of the quantized ones before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir
import torch

from qxcompiler.calibration.samples import Sample
from qxcompiler.calibration.segment_runner import SegmentRunner, UnrunnableError
from qxcompiler.calibration.statistics import InputStatistics
from qxcompiler.errors import ModelError
from qxcompiler.formats import Format, QuantizedWeight
from qxcompiler.graph import Site, Weight, find_segments
from qxcompiler.graph.model_file import first_cause
from qxcompiler.progress import Track
from qxcompiler.quantizers.registry import find_quantizer

__all__ = ["QuantizationResult", "quantize_blockwise", "quantize_without_statistics"]


@dataclass(frozen=True)
class QuantizationResult:
    """One quantized weight.

    Attributes:
        weight: the codes.
        quantizer: the algorithm that chose them.
        error: |X(W - Ŵ)ᵀ| / |XWᵀ| over the calibration samples, or |W - Ŵ| / |W| where there were none.
        reason: why it was rounded to nearest and not by the algorithm asked for, where that is so.
        skipped_tokens: how many rows of X were left out, since they hold NaN or infinity.
    """

    weight: QuantizedWeight
    quantizer: str
    error: float
    reason: str | None = None
    skipped_tokens: int = 0


def quantize_without_statistics(weight: Weight, fmt: Format, device: torch.device) -> QuantizationResult:
    """Round a weight to nearest, all its inputs counted alike: for embeddings, which have no input statistics.

    Raises:
        ModelError: the weight does not fit the format.
    """
    return _round(weight, fmt, device)


def quantize_blockwise(
    model: ir.Model,
    sites: Sequence[Site],
    formats: Mapping[Weight, Format],
    quantizer: str,
    samples: Sequence[Sample],
    device: torch.device,
    track: Track,
    known: Mapping[Weight, QuantizationResult],
) -> dict[Weight, QuantizationResult]:
    """Quantize the weights named in `formats`, block after block.

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
        known: results for some of the weights, which are taken as they are.

    Raises:
        ModelError: the model fails to run on the samples, or a weight does not fit its format.
    """
    segments = find_segments(model, sites)
    calibrated = {site.weight for segment in segments for site in segment.sites}
    looked_up = {site.weight for site in sites if site.kind == "embedding"}
    results = dict(known)
    for weight, fmt in formats.items():
        if weight not in results and (weight in looked_up or weight not in calibrated):
            results[weight] = _round(weight, fmt, device, None if weight in looked_up else "it is used in a body alone")
    streams = [dict(sample) for sample in samples]
    for index, segment in enumerate(track(segments, "quantize")):
        runner = SegmentRunner(model, segment)
        operands = {
            site.weight: results[site.weight].weight.decode() if site.weight in results else site.weight.matrix()
            for site in [*segment.embeddings, *segment.sites]
        }
        todo = [weight for weight in operands if weight in formats and weight not in results]
        try:
            if todo:
                statistics = runner.collect(streams, operands, todo, device)
                for weight in todo:
                    results[weight] = _quantize(weight, formats[weight], quantizer, statistics[weight], device)
                    operands[weight] = results[weight].weight.decode()
            if index + 1 < len(segments):
                still_read = {value.name for later in segments[index + 1 :] for value in later.inputs}
                runner.advance(streams, operands, still_read)
        except UnrunnableError as error:
            reason = f"onnxruntime cannot run a part of the model by itself ({first_cause(error)})"
            left = {weight: fmt for weight, fmt in formats.items() if weight not in results}
            results |= {weight: _round(weight, fmt, device, reason) for weight, fmt in left.items()}
            break
    return results


def _round(
    weight: Weight, fmt: Format, device: torch.device, reason: str | None = None, skipped: int = 0
) -> QuantizationResult:
    return replace(_quantize(weight, fmt, "rtn", None, device), reason=reason, skipped_tokens=skipped)


def _quantize(
    weight: Weight, fmt: Format, quantizer: str, statistics: InputStatistics | None, device: torch.device
) -> QuantizationResult:
    skipped = 0 if statistics is None else statistics.skipped
    if statistics is not None and not statistics.tokens:
        reason = "its input is never finite" if skipped else "no sample reaches it"
        return _round(weight, fmt, device, reason, skipped)
    W = weight.matrix().to(device)
    try:
        quantized = find_quantizer(quantizer)(W, fmt, statistics)
    except OverflowError as error:
        raise ModelError(
            f"weight '{weight.name}'",
            f"is too large for {fmt.name} ({error})",
            "leave it in float with --keep",
        ) from error
    except ArithmeticError as error:
        return _round(weight, fmt, device, f"{quantizer} cannot be applied ({error})", skipped)
    relative_error = _relative_error(W, quantized.decode(), statistics)
    return QuantizationResult(quantized, quantizer, relative_error, skipped_tokens=skipped)


def _relative_error(W: torch.Tensor, quantized: torch.Tensor, statistics: InputStatistics | None) -> float:
    """|X(W - Ŵ)ᵀ| / |XWᵀ|, from XᵀX; every input alike without it."""

    def squared_norm(matrix: torch.Tensor) -> float:
        image = matrix if statistics is None else matrix @ statistics.second_moment
        return max(float((image * matrix).sum(dtype=torch.float64)), 0.0)

    norm = squared_norm(W)
    return (squared_norm(W - quantized) / norm) ** 0.5 if norm else 0.0
