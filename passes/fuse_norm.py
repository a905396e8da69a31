"""Compute a norm in one operator, with the addition before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qxcompiler.cost.shapes import Shape, Shapes, is_random
from qxcompiler.errors import ModelError
from qxcompiler.graph.nodes import is_standard, replace_value
from qxcompiler.passes.example_shapes import example_shapes
from qxcompiler.passes.norm_pattern import Norm, find_norm
from qxcompiler.passes.piece import Piece
from qxcompiler.passes.rewriting import Additions, add_functions
from qxcompiler.runtime_ops.norm import NormType
from qxcompiler.runtime_ops.operators import DOMAIN

__all__ = ["FuseNorm"]

_TOLERANCE = {ir.DataType.FLOAT: 1e-4, ir.DataType.FLOAT16: 2e-2}


class FuseNorm(ir.passes.InPlacePass):
    """Compute a norm in one operator, with the addition before it.

    - x / sqrt(mean(x^2) + epsilon) over the last axis becomes `RMSNorm`; where the mean is subtracted from x first,
      `LayerNorm`. Constants that it is multiplied by or that are added, whatever they follow from, become gain and
      bias. Casts around it go.
    - Where x is the sum of two activations of its own shape, the operator adds them: `SkipRMSNorm`, `SkipLayerNorm`.
    - Each is compared with what stood there, on random numbers, before it is taken.

    Args:
        samples: of the model's inputs, whose sizes tell what tokens and batches do not: channels, height and width.
    """

    def __init__(self, samples: Sequence[Mapping[str, np.ndarray]] = ()) -> None:
        self.samples = samples

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the model in place."""
        try:
            shapes = example_shapes(model, self.samples)
        except ModelError:  # of models whose sizes follow from data nothing can be compared
            return ir.passes.PassResult(model, modified=False)
        writer = _Writer(model, shapes)
        operators = set()
        for node in list(model.graph):
            norm = find_norm(node, shapes[0])
            if norm is not None and (name := writer.write(norm)):
                operators.add(name)
        if operators:
            model.graph.extend(writer.nodes)
            add_functions(model, operators)
            model.graph.sort()
            ir.passes.common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(operators))


@dataclass(frozen=True)
class _Scaled:
    """A norm's result, times a gain [N], plus a bias [N]."""

    value: ir.Value
    gain: np.ndarray
    bias: np.ndarray


class _Writer:
    """Writes norms."""

    def __init__(self, model: ir.Model, shapes: Sequence[Shapes]) -> None:
        self.model, self.shapes = model, shapes
        self.additions = Additions(model)
        self.constants = _constants(model)
        self.nodes: list[ir.Node] = []

    def write(self, norm: Norm) -> str | None:
        """Put an operator in a norm's place; its name, or None where none computes the same."""
        results = self.results(norm)
        while results:
            x = self.of_type(norm.x, self.type_of(results[-1].value))
            if x is not None:
                return self.put(norm, x, results)
            results.pop()
        return None

    def results(self, norm: Norm) -> list[_Scaled]:
        """What a norm gives, before and after each of the casts, gains and biases that follow."""
        shape = self.shapes[0][norm.x]
        if not shape or norm.epsilon < 0:
            return []
        gain = np.ones(shape[-1]) if norm.gain is None else self.row(norm.gain, shape)
        bias = np.zeros(shape[-1]) if norm.bias is None else self.row(norm.bias, shape)
        if gain is None or bias is None:
            return []
        found = [_Scaled(norm.output, gain, bias)]
        while not (value := found[-1].value).is_graph_output():
            readers = {node for node in value.consumers() if not is_standard(node, ("Shape",))}
            node = readers.pop() if len(readers) == 1 else None
            if node is None or not is_standard(node, ("Cast", "Mul", "Add") if norm.centered else ("Cast", "Mul")):
                break
            row = next((row for each in node.inputs if (row := self.row(each, shape)) is not None), None)
            if node.op_type == "Mul" and row is not None:
                gain, bias = gain * row, bias * row
            elif node.op_type == "Add" and row is not None:
                bias = bias + row
            elif node.op_type != "Cast":
                break
            found.append(_Scaled(node.outputs[0], gain, bias))
        return found

    def row(self, value: ir.Value | None, shape: Shape) -> np.ndarray | None:
        """A constant that is the same for every row of such a shape, [N]."""
        if value is None or value not in self.constants:
            return None
        (array,) = [value.const_value.numpy()] if value.const_value else Piece(self.model, [value], {}, {}).run()
        if (
            array.ndim > len(shape)
            or array.size not in (1, shape[-1])
            or array.shape[-1:] not in ((), (1,), shape[-1:])
        ):
            return None
        return np.broadcast_to(array.astype(np.float64).reshape(-1), shape[-1:])

    def of_type(self, x: ir.Value, dtype: ir.DataType | None) -> ir.Value | None:
        """What is normalized, or a cast of it, in the type of the result."""
        casts = [node.outputs[0] for node in x.consumers() if is_standard(node, ("Cast",))]
        return next((each for each in (x, *casts) if dtype in _TOLERANCE and self.type_of(each) == dtype), None)

    def put(self, norm: Norm, x: ir.Value, results: Sequence[_Scaled]) -> str | None:
        """Put an operator in place of what leads from x to the last of the results."""
        result, x = results[-1].value, self.before_casts(x)
        terms = self.terms(x)
        kind = NormType(norm.centered, skip=len(terms) > 1)
        inputs = dict(zip(("X", "skip"), terms, strict=False))
        rows = {"gain": results[-1].gain, "bias": results[-1].bias}
        for each in rows.keys() & set(kind.inputs):
            tensor = ir.tensor(rows[each].astype(np.float32), name=f"{result.name}.{each}")
            inputs[each] = self.additions.constant(tensor)
        fused = self.additions.node(
            kind.name,
            [inputs[each] for each in kind.inputs],
            {"epsilon": norm.epsilon},
            domain=DOMAIN,
            name=f"{result.name}.norm",
            outputs=len(kind.outputs),
        )
        old = [result, x][: len(kind.outputs)]
        if not self.is_equal(terms, norm.epsilon, old, fused.outputs):
            for each in rows.keys() & inputs.keys():
                self.additions.remove(inputs[each])
            return None
        for passed in results[:-1]:
            for node in passed.value.consumers():
                if is_standard(node, ("Shape",)):
                    node.replace_input_with(0, fused.outputs[0])
        dtype = self.type_of(x)
        assert dtype is not None
        for before, after in zip(old, fused.outputs, strict=True):
            for shapes in self.shapes:
                shapes.set(after, shapes.shapes[before], dtype)
            replace_value(before, after)
            after.dtype = dtype
        self.nodes.append(fused)
        return kind.name

    def terms(self, x: ir.Value) -> Sequence[ir.Value]:
        """What x is the sum of, where both have its shape; else x itself."""
        node = x.producer()
        if node is None or not is_standard(node, ("Add",)):
            return [x]
        terms = [self.before_casts(each) for each in node.inputs if each is not None]
        alike = all(shapes[each] == shapes[x] for each in terms for shapes in self.shapes)
        return terms if alike else [x]

    def before_casts(self, value: ir.Value) -> ir.Value:
        """What a value is before casts to the type that it has already."""
        node = value.producer()
        source = node.inputs[0] if node is not None and is_standard(node, ("Cast",)) else None
        if source is None or self.type_of(source) != self.type_of(value):
            return value
        return self.before_casts(source)

    def is_equal(
        self, terms: Sequence[ir.Value], epsilon: float, old: Sequence[ir.Value], new: Sequence[ir.Value]
    ) -> bool:
        """Whether both compute the same of random numbers, some rows of which are as small as epsilon."""
        shape, dtype = self.shapes[0].shapes[terms[0]], self.type_of(terms[0])
        assert dtype is not None
        draws = np.random.default_rng(0)
        sizes = np.where(draws.random((*shape[:-1], 1)) < 0.5, 1, np.sqrt(epsilon) or 1)
        feeds = {each: ((draws.standard_normal(shape) + 0.5) * sizes).astype(dtype.numpy()) for each in terms}
        try:
            pair = [Piece(self.model, outputs, feeds, {}).run() for outputs in (old, new)]
        except ModelError:
            return False
        limit = _TOLERANCE[dtype]
        return all(a.shape == b.shape and np.allclose(a, b, rtol=limit, atol=limit) for a, b in zip(*pair, strict=True))

    def type_of(self, value: ir.Value) -> ir.DataType | None:
        found = self.shapes[0].type_of(value)
        return None if found is None else ir.DataType(found.tensor_type.elem_type)


def _constants(model: ir.Model) -> set[ir.Value | None]:
    """The initializers, and what the standard's operators make of them alone."""
    constants: set[ir.Value | None] = set(model.graph.initializers.values())
    for node in model.graph:
        if node.inputs and constants.issuperset(node.inputs) and node.domain == "" and not is_random(node):
            constants.update(node.outputs)
    return constants
