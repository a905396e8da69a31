"""Run one segment of a model over all samples: statistics out, then the activations for the next segment."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import torch

from qxcompiler.calibration.samples import Sample
from qxcompiler.calibration.statistics import InputStatistics
from qxcompiler.errors import ModelError
from qxcompiler.graph import Segment, Site, Weight, extract_segment

__all__ = ["SegmentRunner"]

Operands = Mapping[Weight, torch.Tensor]


class SegmentRunner:
    """One segment as an onnxruntime session that takes its sites' weights as inputs.

    So the same session runs with original and with quantized weights.

    Args:
        model: the model that was segmented.
        segment: one of its segments.

    Raises:
        ModelError: onnxruntime cannot load the segment.
    """

    def __init__(self, model: ir.Model, segment: Segment) -> None:
        self._sites = [*segment.embeddings, *segment.sites]
        self._linear = segment.sites
        self._outputs = [value.name or "" for value in segment.outputs]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised, and need not be printed besides
        # between two runs the cores belong to the statistics
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        proto = ir.to_proto(extract_segment(model, segment))
        try:
            self._session = onnxruntime.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors share no other base
            raise _failure(segment, "cannot be loaded", error) from error
        self._segment = segment
        self._input_names = {value.name for value in self._session.get_inputs()}

    def collect(
        self, streams: Sequence[Sample], operands: Operands, wanted: Collection[Weight], device: torch.device
    ) -> dict[Weight, InputStatistics]:
        """Statistics of the inputs of linear sites; weights that share an input share the statistics.

        Args:
            streams: for every sample, the graph's inputs and the values that earlier segments passed on.
            operands: float32 [N, K] for every weight of the segment.
            wanted: the weights whose statistics are asked for.
            device: where to keep them.
        """
        readers = [site for site in self._linear if site.weight in wanted]
        inputs_of = {
            weight: frozenset((site.input.name or "", site.activation_axis) for site in readers if site.weight is weight)
            for weight in wanted
        }
        shared = {
            key: InputStatistics.empty(weight.in_features, device) for weight, key in inputs_of.items()
        }
        computed = sorted({site.input.name or "" for site in readers} - self._input_names)
        weights = self._weight_feeds(operands)
        for stream in streams:
            values = {**stream, **dict(zip(computed, self._run(stream, weights, computed), strict=True))}
            for key, accumulated in shared.items():
                for name, axis in sorted(key):
                    X = np.moveaxis(values[name], axis, -1)
                    accumulated.add(torch.from_numpy(X.reshape(-1, X.shape[-1]).astype(np.float32, copy=False)))
        return {weight: shared[key] for weight, key in inputs_of.items()}

    def advance(self, streams: Sequence[Sample], operands: Operands, keep: Collection[str | None]) -> None:
        """Compute what the segment passes on, and forget what no later segment reads.

        Args:
            streams: as in `collect`; the values passed on are added in place.
            operands: float32 [N, K] for every weight of the segment, quantized ones decoded.
            keep: the names of the values that later segments read.
        """
        weights = self._weight_feeds(operands)
        passed_before = {value.name for value in self._segment.inputs}
        for stream in streams:
            passed = self._run(stream, weights, self._outputs)
            for name in passed_before - set(keep):
                stream.pop(name or "", None)
            stream.update(zip(self._outputs, passed, strict=True))

    def _weight_feeds(self, operands: Operands) -> Sample:
        return {
            site.operand.name or "": site.operand_array(operands[site.weight])
            for site in self._sites
            if site.operand.name in self._input_names
        }

    def _run(self, stream: Sample, weights: Sample, outputs: list[str]) -> list[npt.NDArray[Any]]:
        if not outputs:
            return []
        feeds = {name: value for name, value in stream.items() if name in self._input_names}
        try:
            values: list[npt.NDArray[Any]] = self._session.run(outputs, feeds | weights)
        except Exception as error:
            raise _failure(self._segment, "fails on the calibration samples", error) from error
        return values


def _failure(segment: Segment, problem: str, error: Exception) -> ModelError:
    sites: list[Site] = [*segment.embeddings, *segment.sites]
    return ModelError(
        f"the part of the model around {sites[0].name}",
        f"{problem} ({error})",
        "check that the model runs in onnxruntime",
    )
