"""The range of each activation over the calibration samples, and its grid of 8 bits with one scale a tensor."""

from __future__ import annotations

__all__ = ["INT8", "Histogram", "StaticGrid", "best_grid", "observe"]

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from qxcompiler.calibration.feeding import run
from qxcompiler.calibration.samples import Sample
from qxcompiler.errors import ModelError
from qxcompiler.graph import save_model
from qxcompiler.graph.model_file import first_cause
from qxcompiler.progress import Track
from qxcompiler_runtime import session

INT8 = (-128, 127)
_BINS = 2048
_RATIOS = 1.0 - 0.025 * np.arange(21)  # as those that weights are clipped by
# Numbers of activations that one run gives out, in bytes.
_GIVEN_BYTES = 1 << 28


@dataclass(frozen=True)
class StaticGrid:
    """`value = scale * (code - zero_point)`, codes in int8, for a whole tensor.

    Zero is a code, so that padding is exact and a rectifier in front costs nothing: its range begins at the lowest
    code (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference").
    """

    scale: np.float32
    zero_point: int

    @classmethod
    def spanning(cls, low: float, high: float) -> StaticGrid:
        """The grid from `low` to `high`, and zero."""
        scale, zero = _grids(np.float64(low), np.float64(high))
        return cls(np.float32(scale), int(zero))

    def encode(self, values: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
        """Round to nearest (ties to even) and clamp."""
        codes = np.round(values.astype(np.float32) / self.scale) + np.float32(self.zero_point)
        return codes.clip(*INT8).astype(np.int8)

    def decode(self, codes: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
        """`scale * (code - zero_point)`."""
        return (codes.astype(np.float32) - np.float32(self.zero_point)) * self.scale


@dataclass
class Histogram:
    """How often the numbers of a tensor fall into each of 2048 equal parts of [low, high], over all samples.

    Attributes:
        low, high: the smallest and the largest number, as float32.
        counts: int64 [2048]; all zero where the range is not finite.
    """

    low: float
    high: float
    counts: npt.NDArray[np.int64]

    def add(self, values: npt.NDArray[Any]) -> None:
        """Count more numbers."""
        self.counts += np.histogram(values, bins=len(self.counts), range=(self.low, self.high))[0]

    @property
    def centers(self) -> npt.NDArray[np.float64]:
        """The middle of each part."""
        edges = np.linspace(self.low, self.high, len(self.counts) + 1)
        return (edges[:-1] + edges[1:]) / 2


def observe(
    model: ir.Model,
    values: Sequence[ir.Value],
    samples: Sequence[Sample],
    track: Track,
    folder: Path | None = None,
) -> list[Histogram]:
    """The histogram of each of some float32 values of a model's main graph.

    The model runs twice over the samples: for the smallest and largest numbers, then for the counts. Memory holds
    histograms, and 256 MB of activations at a time or those of one value.

    Args:
        model: as it is now.
        values: outputs of nodes, or inputs of the graph.
        samples: inputs of the model, at least one.
        track: shows progress.
        folder: the model is written to a temporary folder in it, or in the system's.

    Raises:
        ModelError: onnxruntime fails to run the model on the samples.
    """
    names = [value.name or "" for value in values]
    with tempfile.TemporaryDirectory(dir=folder) as written:
        save_model(model, written)
        path = Path(written) / "model.onnx"
        limits = dict.fromkeys(names, (np.inf, -np.inf, 0))
        for found in _run(path, _extremes(names), samples, track, "ranges"):
            for name in names:
                low, high, size = (found[_asked(name, what)] for what in _EXTREMES)
                if size:
                    before = limits[name]
                    limits[name] = (np.minimum(before[0], low), np.maximum(before[1], high), max(before[2], int(size)))
        found_histograms = {
            name: Histogram(float(low), float(high), np.zeros(_BINS, np.int64))
            for name, (low, high, _) in limits.items()
        }
        counted = {name: 4 * limits[name][2] for name, each in found_histograms.items() if _is_span(each)}
        for batch in _batches(counted):
            for found in _run(path, batch, samples, track, "histograms"):
                for name, array in found.items():
                    if array.size:
                        found_histograms[name].add(array)
    return [found_histograms[name] for name in names]


def best_grid(histogram: Histogram) -> StaticGrid:
    """The grid of least squared error over a histogram, from the smallest to the largest number or narrower.

    Either end is clipped by every ratio from 1, which is min-max, to 0.5: the search of Choukroun et al. 2019
    ("Low-bit Quantization of Neural Networks for Efficient Inference") for each end by itself.
    """
    lows = np.unique(min(histogram.low, 0.0) * _RATIOS)
    highs = np.unique(max(histogram.high, 0.0) * _RATIOS)[::-1]  # the widest first, which wins if all are as good
    used = histogram.counts > 0
    counts, centers = histogram.counts[used].astype(np.float64), histogram.centers[used]
    ends = [(low, high) for low in lows for high in highs]
    low, high = np.array(ends).T
    scale, zero = _grids(low, high)
    codes = np.round(centers / scale[:, None]) + zero[:, None]
    decoded = (codes.clip(*INT8) - zero[:, None]) * scale[:, None]
    errors = np.square(decoded - centers) @ counts
    return StaticGrid.spanning(*ends[int(np.argmin(errors))])


def _grids(low: Any, high: Any) -> tuple[Any, Any]:
    """Scales and zero points, integers, that span ranges: float64."""
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    smallest, largest = INT8
    scale = (high - low) / (largest - smallest)
    scale = np.float64(np.float32(np.where(scale < np.finfo(np.float32).tiny, 1.0, scale)))
    zero = np.round(smallest - low / scale).clip(smallest, largest)
    return scale, zero


def _is_span(histogram: Histogram) -> bool:
    return isfinite(histogram.low) and isfinite(histogram.high) and histogram.low < histogram.high


_EXTREMES = {"low": "ReduceMin", "high": "ReduceMax", "size": "Size"}


def _extremes(names: Sequence[str]) -> dict[str, onnx.NodeProto]:
    """Nodes that compute what is asked of each value, by the names of their outputs."""
    nodes = {}
    for name in names:
        for what, operator in _EXTREMES.items():
            attributes = {} if operator == "Size" else {"keepdims": 0}
            nodes[_asked(name, what)] = helper.make_node(operator, [name], [_asked(name, what)], **attributes)
    return nodes


def _asked(name: str, what: str) -> str:
    return f"qxc.{what}.{name}"


def _batches(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Names whose values take at most `_GIVEN_BYTES` together, or one."""
    batch: list[str] = []
    for name, size in sizes.items():
        if batch and sum(sizes[each] for each in batch) + size > _GIVEN_BYTES:
            yield batch
            batch = []
        batch.append(name)
    if batch:
        yield batch


def _run(
    path: Path,
    wanted: Mapping[str, onnx.NodeProto] | Sequence[str],
    samples: Sequence[Sample],
    track: Track,
    description: str,
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Some values, or what nodes of ours compute, for one sample after the other."""
    proto = onnx.load(path, load_external_data=False)
    fed = {value.name for value in proto.graph.input}
    outputs = [name for name in wanted if name not in fed]
    if isinstance(wanted, Mapping):
        proto.graph.node.extend(wanted.values())
    del proto.graph.output[:]
    for name in outputs:
        element = TensorProto.INT64 if name.startswith(_asked("", "size")) else TensorProto.FLOAT
        proto.graph.output.append(helper.make_tensor_value_info(name, element, None))
    if outputs:
        onnx.save(proto, path.with_name("observed.onnx"))
        opened = session(path.with_name("observed.onnx"), frugal=True)
    for sample in track(samples, description):
        computed = []
        if outputs:
            try:
                feeds = {value.name: sample[value.name] for value in opened.get_inputs()}
                computed = run(opened, outputs, feeds)
            except Exception as error:  # onnxruntime's exceptions have no common base
                problem = f"onnxruntime cannot run it on the samples ({first_cause(error)})"
                raise ModelError("the model", problem, "check that the samples fit the model") from error
        yield dict(zip(outputs, computed, strict=True)) | {name: sample[name] for name in wanted if name in fed}
