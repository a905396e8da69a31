"""Quantize a model segment after segment, each calibrated on the output of the quantized ones before it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir
import torch

from qxcompiler.calibration.samples import Sample
from qxcompiler.calibration.segment_runner import TokenWeights, UnrunnableError
from qxcompiler.calibration.statistics import InputStatistics
from qxcompiler.calibration.walk import walk
from qxcompiler.errors import ModelError
from qxcompiler.formats import Format, rotate
from qxcompiler.graph import Site, Weight, by_operator, find_segments
from qxcompiler.graph.model_file import first_cause
from qxcompiler.packing import PackedWeight, pack, unpack
from qxcompiler.progress import Track
from qxcompiler.quantizers.registry import find_quantizer

__all__ = [
    "Keep",
    "QuantizationResult",
    "quantize_segmentwise",
    "quantize_weights",
    "quantize_without_statistics",
    "sharing_a_table",
]

# Chosen on text held back of the kind calibrated on, and of another (docs/results.md, "Trust in the samples").
_SHRINKAGE = 0.2


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


# Why a weight is rounded to nearest, by the kind of site; an embedding has no other way, which needs no word.
_WITHOUT_STATISTICS = {
    "embedding": None,
    "convolution": "a convolution's patches have no statistics",
    "recurrent": "a recurrent layer's state has no statistics",
}

Keep = Callable[[Weight, QuantizationResult], QuantizationResult]
"""Takes each result as soon as it is there, and gives it back as it shall be kept: in a file, say."""


def sharing_a_table(sites: Collection[Site], formats: Mapping[Weight, Format]) -> list[list[Weight]]:
    """The weights in their order, those together that have to be quantized together.

    Layers that one operator can compute have one table between them, where their format learns one for a whole tensor:
    an operator has one.
    """
    groups: dict[Hashable, list[Weight]] = {}
    of_operator = {site.weight: index for index, group in enumerate(by_operator(sites)) for site in group}
    for weight, fmt in formats.items():
        shares = "codebook" in fmt.learnable and fmt.codebook_rows(2) == 1 and weight in of_operator
        groups.setdefault((fmt, of_operator[weight]) if shares else weight, []).append(weight)
    return list(groups.values())


def quantize_without_statistics(
    weights: Sequence[Weight], fmt: Format, device: torch.device, quantizer: str = "rtn"
) -> list[QuantizationResult]:
    """Quantize weights that share a table, if there are several, all inputs counted alike: without samples.

    Raises:
        ModelError: a weight does not fit the format.
    """
    return quantize_weights(weights, fmt, quantizer, None, device)


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

    Memory holds one segment's weights and the activations that pass between segments. A weight that no
    linear layer reads, or that is used in a subgraph alone, is rounded to nearest, for want of statistics, and so is
    one whose input no sample reaches or is never finite, or that comes after what onnxruntime cannot run by itself; one
    used in several segments is quantized with the statistics of the first.

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
    without = {site.weight: site.kind for site in sites if site.kind != "linear"}  # statistics
    rounded = [weight for weight in formats if weight in without or weight not in walked]
    order = [*rounded, *(weight for weight in walked if weight in formats and weight not in without)]
    results = dict(known)

    def left(weights: Sequence[Weight] = order) -> list[Weight]:
        return [weight for weight in weights if weight not in results]

    def finish(weights: Sequence[Weight], found: Sequence[QuantizationResult]) -> None:
        for weight, result in zip(weights, found, strict=True):
            if weight not in results:
                results[weight] = keep(weight, result)

    for weights in sharing_a_table(sites, {weight: formats[weight] for weight in rounded}):
        if left(weights):
            reason = _WITHOUT_STATISTICS.get(without.get(weights[0], ""), "it is used in a body alone")
            reason = None if quantizer == "rtn" else reason
            finish(weights, _round(weights, formats[weights[0]], device, reason))

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
            float_too="original inputs" in find_quantizer(quantizer).needs,
            token_weights=token_weights,
        )
        for stop in stops:
            here = {weight: formats[weight] for weight in stop.weights if weight in formats}
            # where tokens count differently, each weight has statistics of its own
            groups = [[weight] for weight in here] if token_weights else sharing_a_table(stop.segment.sites, here)
            unfinished = [weights for weights in groups if left(weights)]
            statistics = stop.statistics([weights[0] for weights in unfinished]) if unfinished else {}
            for weights in unfinished:
                first = weights[0]
                finish(weights, quantize_weights(weights, here[first], quantizer, statistics[first], device))
                for weight in weights:
                    stop.weights[weight] = results[weight].decode()
            if not left():
                break
    except UnrunnableError as error:
        reason = f"onnxruntime cannot run a part of the model by itself ({first_cause(error)})"
        for weights in sharing_a_table(sites, {weight: formats[weight] for weight in order}):
            if left(weights):
                finish(weights, _round(weights, formats[weights[0]], device, reason))
    return {weight: results[weight] for weight in order}  # the same order however much was known


def _round(
    weights: Sequence[Weight],
    fmt: Format,
    device: torch.device,
    reason: str | None = None,
    skipped: int = 0,
    every: int = 1,
) -> list[QuantizationResult]:
    rounded = quantize_weights(weights, fmt, "rtn", None, device, every)
    return [replace(result, reason=reason, skipped_tokens=skipped) for result in rounded]


def quantize_weights(
    weights: Sequence[Weight],
    fmt: Format,
    quantizer: str,
    statistics: InputStatistics | None,
    device: torch.device,
    every: int = 1,
) -> list[QuantizationResult]:
    """Quantize weights by an algorithm; round them to nearest, and say why, where that cannot be applied.

    Args:
        weights: one, or several of equal inputs that shall share a table.
        fmt: the format of all of them.
        quantizer: the name of the algorithm.
        statistics: of what they are multiplied with, if there are any.
        device: where to compute.
        every: 1 for all rows; else of each so many rows only the first, for an estimate.

    Raises:
        ModelError: the weight does not fit the format.
    """
    skipped = 0 if statistics is None else statistics.skipped
    if statistics is not None and not statistics.tokens:
        reason = "its input is never finite" if skipped else "no sample reaches it"
        return _round(weights, fmt, device, reason, skipped, every)
    W = torch.cat([weight.matrix()[::every].to(device) for weight in weights])
    try:
        quantize = find_quantizer(quantizer).quantize
        trusted = None if statistics is None else statistics.shrunk(_SHRINKAGE)
        if fmt.rotated:
            quantized = quantize(rotate(W), fmt, None if trusted is None else trusted.rotated())
        else:
            quantized = quantize(W, fmt, trusted)
    except OverflowError as error:
        raise ModelError(
            f"weight '{' and '.join(weight.name for weight in weights)}'",
            f"is too large for {fmt.name} ({error})",
            "leave it in float with --keep",
        ) from error
    except ArithmeticError as error:
        reason = f"{quantizer} cannot be applied ({error})"
        return _round(weights, fmt, device, reason, skipped, every)
    results, end = [], 0
    for weight in weights:
        start, end = end, end + len(range(0, weight.out_features, every))
        part = quantized.rows(slice(start, end))
        relative_error = _relative_error(W[start:end], part.decode(), statistics)
        results.append(QuantizationResult(pack(part), quantizer, relative_error, skipped_tokens=skipped))
    return results


def _relative_error(W: torch.Tensor, quantized: torch.Tensor, statistics: InputStatistics | None) -> float:
    """|X(W - Ŵ)ᵀ| / |XWᵀ|, from XᵀX; every input alike without it."""

    def squared_norm(matrix: torch.Tensor) -> float:
        if statistics is None:
            return float(matrix.square().sum(dtype=torch.float64))
        return statistics.squared_norm(matrix)

    norm = squared_norm(W)
    return (squared_norm(W - quantized) / norm) ** 0.5 if norm else 0.0
