"""Quantize activations with a scale a tensor, known beforehand, so that whole graphs run in integers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qxcompiler.calibration.ranges import StaticGrid, best_grid, observe
from qxcompiler.calibration.samples import Sample
from qxcompiler.graph.nodes import captured, data_inputs, is_standard
from qxcompiler.passes.rewriting import Additions
from qxcompiler.progress import Track

__all__ = ["LARGEST", "StaticActivations", "calibrate_grids", "source_of_grid", "static_values"]

LARGEST = 1e4
"""The largest magnitude that a step of 1/256 of a range serves: what exceeds it masks others."""

# What integer units compute, each with scales of its own for what it reads and gives; sites are there besides.
_COMPUTED = {
    *("Add", "Sub", "Mul", "Sum", "Max", "Min", "Concat", "Pad", "Resize"),
    *("Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Gelu", "HardSigmoid", "HardSwish", "Sigmoid", "Softmax", "Tanh"),
    *("AveragePool", "GlobalAveragePool", "ReduceMean"),
}
# What only moves or chooses numbers: its output has its input's scale.
_PRESERVING = {
    *("MaxPool", "GlobalMaxPool", "ReduceMax"),
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Expand", "Tile"),
    *("Slice", "Split", "Gather", "DepthToSpace", "SpaceToDepth"),
}
# Operators whose constant operands are quantized as their activations are.
_OF_CONSTANTS = {"Add", "Sub", "Mul", "Sum", "Max", "Min", "Concat", "PRelu"}
_RECTIFIERS = ("Relu", "Clip")
# What integer kernels of softmax give (TensorFlow Lite's 8-bit quantization specification); onnxruntime's, too.
_PROBABILITIES = StaticGrid(np.float32(1 / 256), -128)


def calibrate_grids(
    model: ir.Model,
    sites: Collection[ir.Node],
    samples: Sequence[Sample],
    track: Track,
    folder: Path | None = None,
) -> tuple[dict[ir.Value, StaticGrid], dict[str, list[ir.Value]]]:
    """The grids of the activations to quantize, from their ranges over samples; those that have none, by the reason.

    Args:
        model: a normalized model.
        sites: the nodes whose weights will be quantized, with static activations.
        samples: inputs of the model, at least one.
        track: shows progress.
        folder: the model is written to a temporary folder in it, or in the system's.

    Raises:
        ModelError: onnxruntime fails to run the model on the samples.
    """
    values = static_values(model, sites)
    quantized = set(values)
    sources = {value: source_of_grid(value, quantized) for value in values}
    observed = list(dict.fromkeys(sources.values()))
    grids: dict[ir.Value, StaticGrid] = {}
    left: dict[str, list[ir.Value]] = {}
    for value, histogram in zip(observed, observe(model, observed, samples, track, folder), strict=True):
        low, high = histogram.low, histogram.high
        producer = value.producer()
        if producer is not None and is_standard(producer, ("Softmax",)):
            grids[value] = _PROBABILITIES
        elif low > high:
            left.setdefault("no sample reaches it", []).append(value)
        elif not max(-low, high) < LARGEST:  # or NaN
            left.setdefault(f"it holds numbers beyond {LARGEST:g}, as masks do", []).append(value)
        else:
            grids[value] = best_grid(histogram)
    return {value: grids[source] for value, source in sources.items() if source in grids}, left


def static_values(model: ir.Model, sites: Collection[ir.Node]) -> list[ir.Value]:
    """The float32 activations to quantize, in topological order: what integer operators read and give.

    What a rectifier alone reads is left out where an operator computes it: integer units saturate instead.

    Args:
        model: a normalized model.
        sites: the nodes whose weights will be quantized, with static activations.
    """
    integer, activations = _integer_nodes(model, sites), _activations(model)
    found: dict[ir.Value, None] = {}
    for node in model.graph:
        if node in integer:
            touched = [value for value in (*_operands(node), *node.outputs) if value in activations]
            found.update(dict.fromkeys(value for value in touched if not _is_rectified(value)))
    return list(found)


def source_of_grid(value: ir.Value, values: Collection[ir.Value]) -> ir.Value:
    """The value whose scale a value has: the input of operators that only move its numbers, or itself."""
    node = value.producer()
    while node is not None and _preserves(node) and (first := node.inputs[0]) is not None and first in values:
        value, node = first, first.producer()
    return value


class StaticActivations(ir.passes.InPlacePass):
    """Put a `QuantizeLinear` and a `DequantizeLinear` behind every value that has a grid.

    - What integer operators compute is read as its codes say by all that reads it, and so are the graph's outputs. What
      others compute, and the graph's inputs, are read so by integer operators alone.
    - Constant operands of additions, products and the like become int8, with a scale a tensor.

    Args:
        sites: as for `static_values`.
        grids: the grid of every value to quantize.
    """

    def __init__(self, sites: Collection[ir.Node], grids: Mapping[ir.Value, StaticGrid]) -> None:
        super().__init__()
        self._sites = sites
        self._grids = grids

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the model in place."""
        additions = Additions(model)
        integer = _integer_nodes(model, self._sites)
        for value, grid in self._grids.items():
            _quantize(value, grid, integer, additions, model.graph)
        for node in integer:
            if node.op_type in _OF_CONSTANTS:
                _quantize_constants(node, additions)
        ir.passes.common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(self._grids))


def _integer_nodes(model: ir.Model, sites: Collection[ir.Node]) -> set[ir.Node]:
    """The nodes of the main graph that integer units run: those that move numbers only beside others."""
    nodes, activations = list(model.graph), _activations(model)
    found = {node for node in nodes if node in sites or is_standard(node, _COMPUTED)}
    found |= {node for node in nodes if is_standard(node, ("MatMul",)) and activations.issuperset(node.inputs)}
    moving = [node for node in nodes if _preserves(node)]
    for node in moving:
        source = node.inputs[0]
        if source is not None and source.producer() in found:
            found.add(node)
    for node in reversed(moving):
        if any(use.node in found for output in node.outputs for use in output.uses()):
            found.add(node)
    return found


def _preserves(node: ir.Node) -> bool:
    if is_standard(node, ("Pad",)):  # with zeros or what is there, but no other number
        filled = node.inputs[2] if len(node.inputs) > 2 else None
        return filled is None or (filled.const_value is not None and not filled.const_value.numpy().any())
    if is_standard(node, ("Resize",)):
        return node.attributes.get_string("mode", "nearest") == "nearest"
    return is_standard(node, _PRESERVING)


def _operands(node: ir.Node) -> list[ir.Value]:
    """What a node computes with, indices, shapes, and a layer's bias aside."""
    if is_standard(node, ("Conv", "Gemm")):
        return [value for value in node.inputs[:1] if value is not None]
    return data_inputs(node)


def _activations(model: ir.Model) -> set[ir.Value]:
    """The float32 values of the main graph that depend on its inputs."""
    dependent = set(model.graph.inputs)
    for node in model.graph:
        if not dependent.isdisjoint((*node.inputs, *captured(node))):
            dependent.update(value for value in node.outputs if value.name)
    return {value for value in dependent if value.dtype == ir.DataType.FLOAT}


def _is_rectified(value: ir.Value) -> bool:
    """Whether a rectifier alone reads what an operator computes."""
    node, uses = value.producer(), list(value.uses())
    if node is None or _preserves(node) or value.is_graph_output() or len(uses) != 1:
        return False
    reader = uses[0].node
    if reader.graph is not node.graph or not is_standard(reader, _RECTIFIERS):
        return False
    return all(bound is None or bound.const_value is not None for bound in reader.inputs[1:])


def _quantize(
    value: ir.Value, grid: StaticGrid, integer: Collection[ir.Node], additions: Additions, graph: ir.Graph
) -> None:
    producer = value.producer()
    readers = [(node, index) for node, index in value.uses() if producer in integer or node in integer]
    codes, decoded = _pair(value, grid, additions)
    if producer is None:
        graph.insert_before(graph[0], [codes, decoded])
    else:
        graph.insert_after(producer, [codes, decoded])
    result = decoded.outputs[0]
    for node, index in readers:
        node.replace_input_with(index, result)
    if producer in integer and value.is_graph_output():
        name, value.name = value.name or "", additions.name(f"{value.name}.float")
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = result
        result.name = name


def _pair(value: ir.Value, grid: StaticGrid, additions: Additions) -> tuple[ir.Node, ir.Node]:
    parameters = _parameters(grid, additions)
    codes = additions.node("QuantizeLinear", [value, *parameters], name=f"{value.name}.QuantizeLinear")
    codes.outputs[0].type, codes.outputs[0].shape = ir.TensorType(ir.DataType.INT8), value.shape
    decoded = additions.node("DequantizeLinear", [codes.outputs[0], *parameters], name=f"{value.name}.DequantizeLinear")
    decoded.outputs[0].type, decoded.outputs[0].shape = value.type, value.shape
    return codes, decoded


def _parameters(grid: StaticGrid, additions: Additions) -> list[ir.Value]:
    scale, zero_point = np.array(grid.scale, np.float32), np.array(grid.zero_point, np.int8)
    return [
        additions.shared(("static scale", float(grid.scale)), "qxc.scale", ir.tensor(scale)),
        additions.shared(("static zero point", grid.zero_point), "qxc.zero_point", ir.tensor(zero_point)),
    ]


def _quantize_constants(node: ir.Node, additions: Additions) -> None:
    """Let a node read its constants as int8, where all else that it reads is quantized."""
    read = [value for value in node.inputs if value is not None]
    constants = [value for value in read if value.const_value is not None and value.dtype == ir.DataType.FLOAT]
    others = [value.producer() for value in read if value not in constants]
    if not all(each is not None and is_standard(each, ("DequantizeLinear",)) for each in others):
        return
    for index, value in enumerate(node.inputs):
        if value is None or value not in constants or value.const_value is None:
            continue
        array = value.const_value.numpy()
        if not array.size or not np.abs(array).max() < LARGEST:
            continue
        grid = StaticGrid.spanning(float(array.min()), float(array.max()))
        codes = additions.shared(("static", value), f"{value.name}.int8", ir.tensor(grid.encode(array)))
        decoded = additions.node(
            "DequantizeLinear", [codes, *_parameters(grid, additions)], name=f"{value.name}.DequantizeLinear"
        )
        decoded.outputs[0].type, decoded.outputs[0].shape = value.type, value.shape
        assert node.graph is not None
        node.graph.insert_before(node, decoded)
        node.replace_input_with(index, decoded.outputs[0])
