"""Find norms in a graph, by their structure: x / sqrt(mean(x^2) + epsilon) over the last axis, and what follows.

What exporters write differs in the root, in casts, and in where gain and bias come from. `fuse_norm.py` compares what
was read here with the graph itself, on random numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qxcompiler.cost.shapes import Shapes
from qxcompiler.graph.nodes import is_standard

__all__ = ["Norm", "find_norm"]

_WHOLE = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


@dataclass(frozen=True)
class Norm:
    """x / sqrt(mean(x^2) + epsilon), with its mean subtracted from x first where it is centered.

    Attributes:
        x: what is normalized, before casts.
        centered: whether it is a LayerNorm.
        epsilon: is added to the mean of squares.
        output: the result.
        gain, bias: values that the result has been multiplied by and that were added, where one node did all.
    """

    x: ir.Value
    centered: bool
    epsilon: float
    output: ir.Value
    gain: ir.Value | None = None
    bias: ir.Value | None = None


def find_norm(node: ir.Node, shapes: Shapes) -> Norm | None:
    """The norm that ends in a node, if one does.

    Args:
        node: of a normalized model, in any stage.
        shapes: of the model's values, for one choice of the free sizes.
    """
    if is_standard(node, _WHOLE):
        return _whole(node, shapes)
    for numerator, radicand in _quotients(node):
        terms = _inputs_of(radicand, "Add")
        epsilon = next((number for each in terms if (number := _number_of(each)) is not None), None)
        mean = next((each for each in terms if _number_of(each) is None), None)
        squared = _squared(_averaged(mean, shapes))
        if epsilon is None or squared is None:
            continue
        x, centered = _centered(squared, shapes)
        if (x, centered) == _centered(numerator, shapes):
            return Norm(x, centered, epsilon, node.outputs[0])
    return None


def _whole(node: ir.Node, shapes: Shapes) -> Norm | None:
    """A norm that is one operator."""
    x, shape = _without_casts(node.inputs[0]), shapes[node.inputs[0]]
    if x is None or shape is None or node.attributes.get_int("axis", -1) not in (-1, len(shape) - 1):
        return None
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    centered = node.op_type == "LayerNormalization"
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    return Norm(x, centered, epsilon, node.outputs[0], node.inputs[1], bias)


def _quotients(node: ir.Node) -> Iterator[tuple[ir.Value | None, ir.Value]]:
    """What a node may divide, by the root of what."""
    if is_standard(node, ("Div",)):
        pairs = [(node.inputs[0], node.inputs[1], 0.5)]
    elif is_standard(node, ("Mul",)):
        first, second = node.inputs
        pairs = [(first, second, -0.5), (second, first, -0.5)]
    else:
        return
    for numerator, root, power in pairs:
        radicand = _radicand(root, power)
        if radicand is not None:
            yield numerator, radicand


def _radicand(value: ir.Value | None, power: float) -> ir.Value | None:
    """What a value is the square root of, or that root's reciprocal."""
    value = _without_casts(value)
    if inputs := _inputs_of(value, "Pow"):
        return inputs[0] if _number_of(inputs[1]) == power else None
    if power > 0:
        return next(iter(_inputs_of(value, "Sqrt")), None)
    if inputs := _inputs_of(value, "Reciprocal"):
        return _radicand(inputs[0], -power)
    inputs = _inputs_of(value, "Div")
    return _radicand(inputs[1], -power) if inputs and _number_of(inputs[0]) == 1 else None


def _averaged(value: ir.Value | None, shapes: Shapes) -> ir.Value | None:
    """What a value is the mean of, over its last axis."""
    value = _without_casts(value)
    inputs = _inputs_of(value, "ReduceMean")
    shape = shapes[inputs[0]] if len(inputs) == 2 else None
    node = value.producer() if value is not None else None
    if node is None or shape is None or not node.attributes.get_int("keepdims", 1):
        return None
    return inputs[0] if _number_of(inputs[1]) in (-1, len(shape) - 1) else None


def _squared(value: ir.Value | None) -> ir.Value | None:
    """What a value is the square of."""
    value = _without_casts(value)
    if inputs := _inputs_of(value, "Pow"):
        return inputs[0] if _number_of(inputs[1]) == 2 else None
    inputs = _inputs_of(value, "Mul")
    return inputs[0] if inputs and inputs[0] is inputs[1] else None


def _centered(value: ir.Value | None, shapes: Shapes) -> tuple[ir.Value, bool]:
    """What a value is, before casts, and whether its mean has been subtracted."""
    value = _without_casts(value)
    assert value is not None
    inputs = _inputs_of(value, "Sub")
    if inputs and (averaged := _averaged(inputs[1], shapes)) is not None:
        x = _without_casts(inputs[0])
        if x is not None and x is _without_casts(averaged):
            return x, True
    return value, False


def _without_casts(value: ir.Value | None) -> ir.Value | None:
    """What a value is, before its type was changed."""
    while inputs := _inputs_of(value, "Cast", "Identity"):
        value = inputs[0]
    return value


def _number_of(value: ir.Value | None) -> float | None:
    """A constant of one element."""
    value = _without_casts(value)
    constant = value.const_value if value is not None else None
    if constant is None or constant.size != 1 or not np.issubdtype(constant.dtype.numpy(), np.number):
        return None
    return float(constant.numpy().reshape(()))


def _inputs_of(value: ir.Value | None, *operators: str) -> list[ir.Value]:
    """What a value is made of, if one of these operators makes it; else nothing."""
    node = value.producer() if value is not None else None
    if node is None or not is_standard(node, operators):
        return []
    return [each for each in node.inputs if each is not None]
