"""Run a model whose weights may be larger than memory: part after part, each in a session of its own."""

from __future__ import annotations

__all__ = ["FrugalModel"]

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime

from qxcompiler.calibration.feeding import run
from qxcompiler.calibration.samples import Sample
from qxcompiler.calibration.segment_runner import type_of
from qxcompiler.errors import ModelError
from qxcompiler.graph import load_model
from qxcompiler.graph.nodes import captured, subgraphs
from qxcompiler.runtime_ops.operators import DOMAIN
from qxcompiler_runtime import session

# Bytes of the weights of one part, packed ones decoded; a larger weight is a part of its own.
_PART_BYTES = 1 << 27
# A model's file, its external data aside, that is as large holds weights itself, which come into memory with it.
_LARGE_FILE = 1 << 26
# The first onnxruntime that finds the external data of a model given as bytes.
_FINDS_DATA = (1, 21)
# Types of values that come out of onnxruntime without their type, or not at all.
_NOT_PASSED = ("float8", "float4", "int4", "int2")
# These go on from one run of a session to the next, and begin again in a new one.
_RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")


class FrugalModel:
    """A model in onnxruntime; one with many weights is run part after part, so that memory holds those of one part.

    The parts compute node by node what the whole would. A model that cannot be cut is run whole.

    Args:
        model: the ONNX file, or a whole model as bytes, which is not cut.
        library: False computes the packed operators by their definition, as onnxruntime does without our library.
            Graphs are not optimized then, for an optimized one holds every weight decoded.

    Attributes:
        model: as given.

    Raises:
        ModelError: the model cannot be loaded; one in parts, only once it is run.
    """

    def __init__(self, model: str | Path | bytes, *, library: bool = True) -> None:
        self.model, self._library = model, library
        self._parts: list[_Part] = []
        if not isinstance(model, bytes) and _is_small(Path(model)) and _version() >= _FINDS_DATA:
            self._folder, self._graph = Path(model).absolute().parent, load_model(model)
            self._parts = _cut(self._graph, decoded=not library)
        if len(self._parts) < 2:
            self._parts = []
            self.session = self._load()

    @cached_property
    def session(self) -> onnxruntime.InferenceSession:
        """The whole of it, loaded.

        Raises:
            ModelError: the model cannot be loaded.
        """
        return self._load()

    def run(
        self, outputs: Sequence[str], feeds: Mapping[str, Any], options: onnxruntime.RunOptions | None = None
    ) -> list[Any]:
        """The values of some outputs, as `feeding.run` gives them, with onnxruntime's exceptions."""
        return self.prepare(outputs, [feeds], options)(0)

    def prepare(
        self,
        outputs: Sequence[str],
        samples: Sequence[Mapping[str, Any]],
        options: onnxruntime.RunOptions | None = None,
    ) -> Callable[[int], list[Any]]:
        """What computes some outputs for one of several samples, as often as asked.

        A model in parts runs all of them as far as the last part, which stays open: memory holds its weights, and for
        every sample what it reads.

        Returns:
            From the place of a sample among them to the values, as `run` gives them.
        """
        if self._parts:
            try:
                return self._prepare_parts(outputs, samples, options)
            except _UncutError:
                self._parts = []
                vars(self).pop("session", None)  # before another takes its memory
                self.session = self._load()
        return lambda index: run(self.session, outputs, samples[index], options)

    def _load(self) -> onnxruntime.InferenceSession:
        runs = not self._parts  # what is only asked for its inputs and outputs need not be optimized
        return session(self.model, optimize=self._library and runs, frugal=True, library=self._library)

    def _prepare_parts(
        self, outputs: Sequence[str], samples: Sequence[Mapping[str, Any]], options: onnxruntime.RunOptions | None
    ) -> Callable[[int], list[Any]]:
        reached: list[Sample] = [dict(sample) for sample in samples]
        for index, part in enumerate(self._parts[:-1]):
            later = {*outputs, *samples[0], *(name for other in self._parts[index + 1 :] for name in other.reads)}
            self._pass_on(part, reached, later, options)
        last = self._open(self._parts[-1], reached[0])

        def run_last(index: int) -> list[Any]:
            values = reached[index] | _run_part(last, reached[index], options)
            return [values[name] for name in outputs]

        return run_last

    def _pass_on(
        self, part: _Part, reached: list[Sample], later: set[str], options: onnxruntime.RunOptions | None
    ) -> None:
        """Run a part on what all samples have become, and forget what is not read later."""
        runtime = self._open(part, reached[0])
        for index, values in enumerate(reached):
            # copies, for onnxruntime's own arrays keep the memory of the whole session
            passed = {name: deepcopy(value) for name, value in _run_part(runtime, values, options).items()}
            reached[index] = {name: value for name, value in (values | passed).items() if name in later}

    def _open(self, part: _Part, values: Sample) -> onnxruntime.InferenceSession:
        if part.model is None:
            part.model = _extract(self._graph, part, values).SerializeToString()
        try:
            runtime = session(
                part.model, optimize=self._library, frugal=True, library=self._library, folder=self._folder
            )
        except ModelError as error:
            raise _UncutError from error
        if any(name in value.type for value in runtime.get_outputs() for name in _NOT_PASSED):
            raise _UncutError
        return runtime


def _run_part(runtime: onnxruntime.InferenceSession, values: Sample, options: onnxruntime.RunOptions | None) -> Sample:
    given = {value.name: values[value.name] for value in runtime.get_inputs() if value.name in values}
    names = [value.name for value in runtime.get_outputs()]
    return dict(zip(names, run(runtime, names, given, options), strict=True))


class _UncutError(Exception):
    """A part cannot be run by itself."""


@dataclass
class _Part:
    """Some nodes, one after the other.

    Attributes:
        reads: names of the values that it takes: inputs of the graph, and what earlier parts pass on.
        passes: what it computes for later parts, and the graph's outputs.
        model: the part as a model, once the types of what it reads are known.
    """

    reads: dict[str, ir.Value] = field(default_factory=dict)
    passes: dict[ir.Value, None] = field(default_factory=dict)
    model: bytes | None = None


def _is_small(file: Path) -> bool:
    return file.is_file() and file.stat().st_size < _LARGE_FILE


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])


def _cut(model: ir.Model, *, decoded: bool) -> list[_Part]:
    """The parts of a model, by the weights that its nodes read; one where random numbers are drawn.

    What depends on no input is computed in every part that reads it.
    """
    graph = model.graph
    graph.sort()
    nodes = chain(graph.all_nodes(), *(function.all_nodes() for function in model.functions.values()))
    if any(node.op_type in _RANDOM for node in nodes):
        return []
    fed = [value for value in graph.inputs if value.name not in graph.initializers]
    home: dict[ir.Value, int] = dict.fromkeys(fed, -1)
    behind: dict[ir.Value, dict[ir.Value, int]] = {}  # the weights from which constants are computed, with their bytes
    parts, held = [_Part()], dict[ir.Value, int]()
    for node in graph:
        reads = [value for value in (*node.inputs, *captured(node)) if value is not None]
        weights = _weights(node, decoded) | {w: n for value in reads for w, n in behind.get(value, {}).items()}
        if node.op_type == "Constant" or (reads and not any(value in home for value in reads)):
            behind.update(dict.fromkeys(node.outputs, weights))
            continue
        if held and sum((held | weights).values()) > _PART_BYTES:
            parts.append(_Part())
            held = {}
        held |= weights
        home.update(dict.fromkeys(node.outputs, len(parts) - 1))
        for value in reads:
            if home.get(value, len(parts) - 1) < len(parts) - 1:
                parts[-1].reads[value.name or ""] = value
                if home[value] >= 0:
                    parts[home[value]].passes[value] = None
    for value in graph.outputs:
        if value not in fed:
            parts[home.get(value, -1)].passes[value] = None
    return [part for part in parts if part.passes]


def _weights(node: ir.Node, decoded: bool) -> dict[ir.Value, int]:
    """The bytes of the weights that a node and its bodies read from files, and of those that they decode."""
    nodes = [node, *(inner for body in subgraphs(node) for inner in body)]
    found = {
        value: value.const_value.nbytes
        for each in nodes
        for value in each.inputs
        if value is not None and isinstance(value.const_value, ir.ExternalTensor)
    }
    for each in nodes:
        if decoded and each.domain == DOMAIN and {"K", "N"} <= each.attributes.keys():
            found[each.outputs[0]] = 4 * each.attributes["K"].as_int() * each.attributes["N"].as_int()
    return found


def _extract(model: ir.Model, part: _Part, values: Sample) -> Any:
    """A part as a model: its weights stay in their files."""
    given = dict.fromkeys([*model.graph.inputs, *part.reads.values()])
    graph = ir.convenience.extract(model.graph, list(given), list(part.passes))
    for original, value in zip(given, list(graph.inputs), strict=True):
        if original not in model.graph.inputs:
            value.type, value.shape = type_of(values[value.name or ""]), None
    used = [value for value in graph.inputs if value.uses()]
    graph.inputs.clear()
    graph.inputs.extend(used)
    return ir.to_proto(ir.Model(graph, ir_version=model.ir_version, functions=tuple(model.functions.values())))
