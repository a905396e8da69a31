"""Run one segment of a model over all samples: statistics out, then the activations for the next segment."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import torch

from qxcompiler.calibration.samples import Sample
from qxcompiler.errors import ModelError, QxcError
from qxcompiler.graph import Input, Segment, Site, Weight, extract_segment, inputs_of_weights

__all__ = ["SegmentRunner", "UnrunnableError", "type_of"]

# Types of which onnxruntime takes and gives no arrays.
_NOT_IN_NUMPY = ("bfloat16", "float8", "float4", "int4", "int2")
# Samples that run at once: what one thread alone can do in a run is done while the other run uses the rest.
_AT_ONCE = 2

Operands = Mapping[Weight, torch.Tensor]
TokenWeights = Mapping[Site, Sequence[torch.Tensor]]
"""How often each token of each sample counts in the statistics of a site's input: float32 [tokens] a sample."""


class Collected(Protocol):
    """What is made of an activation, a part of it at a time."""

    def add(self, X: torch.Tensor, weights: torch.Tensor | None = None, original: torch.Tensor | None = None) -> None:
        """Take in more tokens: X is float32 [tokens, K], and each counts as often as its weight says, or once.

        The original model's tokens, in their place, are given where it is run beside.
        """


C = TypeVar("C", bound=Collected)


class UnrunnableError(ModelError):
    """A segment that onnxruntime cannot load by itself, whatever the samples."""


class SegmentRunner:
    """Runs one segment with its sites' weights given, original or quantized.

    Args:
        model: the model that was segmented.
        segment: one of its segments.
    """

    def __init__(self, model: ir.Model, segment: Segment) -> None:
        self._model = model
        self._segment = segment

    def collect(
        self,
        streams: Sequence[Sample],
        operands: Operands,
        wanted: Collection[Weight],
        empty: Callable[[int], C],
        token_weights: TokenWeights,
        original: tuple[Sequence[Sample], Operands] | None = None,
    ) -> dict[Weight, C]:
        """What is made of the inputs of linear sites; weights that share an input and no token weights share it.

        Args:
            streams: for every sample, the graph's inputs and the values that earlier segments passed on.
            operands: float32 [N, K] for every weight of the segment.
            wanted: the weights whose inputs are asked for.
            empty: what is made of no tokens, for K channels.
            token_weights: how often a token counts, where not once.
            original: streams and operands of the original model, to be run beside.

        Raises:
            UnrunnableError: onnxruntime cannot load the segment.
            ModelError: it fails on the samples.
        """
        readers = [site for site in self._segment.sites if site.weight in wanted]
        sources = inputs_of_weights(readers)
        counted: defaultdict[tuple[Weight | None, Input], list[Site]] = defaultdict(list)
        for site in readers:
            if site in token_weights:
                counted[site.weight, Input(site.input, site.activation_axis)].append(site)
        apart = {weight for weight, _ in counted}
        keys = {weight: (source, weight if weight in apart else None) for weight, source in sources.items()}
        features = {key: weight.in_features for weight, key in keys.items()}
        made = {key: empty(K) for key, K in features.items()}
        given = {*streams[0]}
        missing = list(dict.fromkeys(site.input for site in readers if site.input.name not in given))

        def runs(streams: Sequence[Sample], operands: Operands) -> Iterator[Sample]:
            for stream, computed in zip(streams, self._run(missing, streams, operands), strict=True):
                yield stream | computed

        beside: Iterator[Sample | None] = repeat(None, len(streams)) if original is None else runs(*original)
        for index, (values, originals) in enumerate(zip(runs(streams, operands), beside, strict=True)):
            for (source, weight), K in features.items():
                for read in sorted(source, key=lambda each: (each.value.name, each.axis)):
                    here = [token_weights[site][index] for site in counted.get((weight, read), ())]
                    weights = torch.stack(here).sum(0) if here else None
                    others = None if originals is None else self._tokens(originals, *read, K)
                    made[source, weight].add(self._tokens(values, *read, K), weights, others)
        return {weight: made[key] for weight, key in keys.items()}

    def _tokens(self, values: Sample, value: ir.Value, axis: int, K: int) -> torch.Tensor:
        """A value's rows along an axis: float32 [tokens, K]."""
        X = values[value.name or ""]
        if X.ndim < -axis or X.ndim <= axis or X.shape[axis] != K:  # no runtime multiplies these
            raise self._misfit(value, axis, X.shape, K)
        X = np.moveaxis(X, axis, -1)
        with np.errstate(over="ignore"):  # beyond float32 is infinity, which statistics leave out
            return torch.from_numpy(X.reshape(-1, X.shape[-1]).astype(np.float32, copy=False))

    def _misfit(self, value: ir.Value, axis: int, shape: tuple[int, ...], K: int) -> ModelError:
        layer = next(site.name for site in self._segment.sites if site.input is value)
        problem = f"reads {value.name} of shape {list(shape)}, and takes {K} numbers along axis {axis}"
        return ModelError(f"layer '{layer}'", problem, "check that the model runs in onnxruntime")

    def advance(self, streams: Sequence[Sample], operands: Operands, keep: Collection[str | None]) -> None:
        """Compute what the segment passes on, and forget what no later segment reads.

        Args:
            streams: as in `collect`; the values passed on are added in place.
            operands: float32 [N, K] for every weight of the segment, quantized ones decoded.
            keep: the names of the values that later segments read.

        Raises:
            UnrunnableError: onnxruntime cannot load the segment.
            ModelError: it fails on the samples.
        """
        done = {value.name for value in self._segment.inputs} - set(keep)
        for stream, passed in zip(streams, self._run(self._segment.outputs, streams, operands), strict=True):
            for name in done:
                stream.pop(name or "", None)
            stream.update(passed)

    def _run(self, outputs: Sequence[ir.Value], streams: Sequence[Sample], operands: Operands) -> Iterator[Sample]:
        """Some values of the segment for one sample after the other, a few computed ahead."""
        if not outputs:
            yield from ({} for _ in streams)
            return
        run = _Run(self._model, self._segment, outputs, operands, streams[0])
        # what no float32 has in full is zero: exponentials that vanish would take ten times as long
        with ThreadPoolExecutor(_AT_ONCE, initializer=torch.set_flush_denormal, initargs=(True,)) as pool:
            ahead: deque[Future[Sample]] = deque()
            for stream in streams:
                ahead.append(pool.submit(run, stream))
                if len(ahead) > _AT_ONCE:
                    yield ahead.popleft().result()
            yield from (future.result() for future in ahead)


class _Run:
    """Computes some values of a segment, one at least, with given weights, for one sample after the other."""

    def __init__(
        self, model: ir.Model, segment: Segment, outputs: Sequence[ir.Value], operands: Operands, example: Sample
    ) -> None:
        self._sites: list[Site] = [*segment.others, *segment.sites]
        self._outputs = [value.name or "" for value in outputs]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised, and need not be printed besides
        options.enable_cpu_mem_arena = False  # it keeps what the largest run took
        options.intra_op_num_threads = max(1, torch.get_num_threads() + 1 - _AT_ONCE)  # and one for each run beside
        # between two runs the cores belong to the statistics
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            types = {name: type_of(value) for name, value in example.items()}
            proto = ir.to_proto(extract_segment(model, segment, outputs, types))
            self._session = onnxruntime.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except QxcError:  # such as a data file that has changed
            raise
        except Exception as error:  # onnxruntime's errors share no other base
            raise self._failure(UnrunnableError, "cannot be loaded", error) from error
        for value in (*self._session.get_inputs(), *self._session.get_outputs()):
            if any(name in value.type for name in _NOT_IN_NUMPY):
                problem = TypeError(f"{value.name} is a {value.type}, which onnxruntime gives to no caller")
                raise self._failure(UnrunnableError, "cannot be run", problem)
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._weights = {
            site.operand.name: site.operand_array(operands[site.weight])
            for site in self._sites
            if site.operand.name in self._inputs
        }

    def __call__(self, stream: Sample) -> Sample:
        feeds = {name: value for name, value in stream.items() if name in self._inputs}
        try:
            values: list[npt.NDArray[Any]] = self._session.run(self._outputs, feeds | self._weights)
        except Exception as error:
            raise self._failure(ModelError, "fails on the calibration samples", error) from error
        return dict(zip(self._outputs, values, strict=True))

    def _failure(self, kind: type[ModelError], problem: str, error: Exception) -> ModelError:
        return kind(
            f"the part of the model around {self._sites[0].name}",
            f"{problem} ({error})",
            "check that the model runs in onnxruntime",
        )


def type_of(value: object) -> ir.TypeProtocol:
    """The type of what onnxruntime gave: a sequence is a list."""
    if isinstance(value, list):
        return ir.SequenceType(type_of(value[0] if value else np.float32(0)))
    dtype = np.asarray(value).dtype
    return ir.TensorType(ir.DataType.STRING if dtype.kind in "OSU" else ir.DataType.from_numpy(dtype))
