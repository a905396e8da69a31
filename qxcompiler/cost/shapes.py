"""The shape of every value of a graph once the free sizes of its inputs are numbers.

Exported graphs compute shapes (`Shape`, `Slice`, `Concat`, then `Reshape`). So beside ONNX's shape inference, node
after node, small values that follow from shapes alone are computed too, by ONNX's reference implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import prod

import numpy as np
import onnx
import onnx.defs
import onnx.shape_inference
import onnx_ir as ir
from onnx import TypeProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from qxcompiler.errors import ModelError

__all__ = ["Shape", "Shapes", "infer", "is_random"]

Shape = tuple[int, ...]
_SMALL = 4096  # elements of a value that is computed
_LARGEST = 1 << 48  # elements of any value
_COMPUTED = {ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.FLOAT}
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}


class Shapes:
    """What is known of the values of a model.

    Attributes:
        shapes: by value.
        constants: the values that follow from shapes alone; computing them costs nothing at run time.
    """

    def __init__(self) -> None:
        self.shapes: dict[ir.Value, Shape] = {}
        self.constants: dict[ir.Value, np.ndarray] = {}
        self._types: dict[ir.Value, TypeProto] = {}

    def __getitem__(self, value: ir.Value | None) -> Shape | None:
        return None if value is None else self.shapes.get(value)

    def set(self, value: ir.Value, shape: Shape, dtype: ir.DataType) -> None:
        """Note a value's shape.

        Raises:
            ModelError: it is larger than any memory.
        """
        if min(shape, default=1) < 0 or prod(shape) > _LARGEST:
            raise ModelError(f"value '{value.name}'", f"would have the shape {list(shape)}", "choose smaller sizes")
        self.shapes[value] = shape
        tensor_type = onnx.helper.make_tensor_type_proto(int(dtype), list(shape))
        self._types[value] = tensor_type

    def type_of(self, value: ir.Value) -> TypeProto | None:
        """Type and shape as ONNX's inference takes them."""
        return self._types.get(value)


def infer(
    model: ir.Model,
    size_of: Callable[[ir.Value, int, str | None], int],
    own: Callable[[ir.Node, Shapes], Sequence[Shape] | None],
) -> Shapes:
    """The shapes of a model's values.

    Args:
        model: normalized.
        size_of: the number that a free size stands for: of an input, an axis, and its symbol if it has one.
        own: the shapes of the first outputs of nodes that ONNX does not know, or None.

    Raises:
        ModelError: an input has no shape, or a value would be larger than any memory.
    """
    found = Shapes()
    for value in model.graph.inputs:
        if value.shape is None or value.dtype is None:
            raise ModelError(f"input '{value.name}'", "has no shape or type", "export the model with input shapes")
        dims = [
            dim if isinstance(dim, int) else size_of(value, axis, dim.value) for axis, dim in enumerate(value.shape)
        ]
        found.set(value, tuple(dims), value.dtype)
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            shape = tuple(int(size) for size in value.const_value.shape.numpy())
            found.set(value, shape, value.const_value.dtype)
            if value.const_value.dtype in _COMPUTED and prod(shape) <= _SMALL:
                found.constants[value] = value.const_value.numpy()
    opset = model.opset_imports.get("", 18)
    for node in model.graph:
        shapes = own(node, found)
        if shapes is not None:
            for value, shape in zip(node.outputs, shapes, strict=False):
                found.set(value, shape, value.dtype or ir.DataType.FLOAT)
        elif node.domain == "" and not any(_is_graph(attribute) for attribute in node.attributes.values()):
            _infer_node(node, opset, model.ir_version, found)
    return found


def is_random(node: ir.Node) -> bool:
    """Whether a node draws random numbers."""
    return node.op_type in _RANDOM


def _is_graph(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _infer_node(node: ir.Node, opset: int, ir_version: int, found: Shapes) -> None:
    inputs = [value for value in node.inputs if value is not None]
    if any(found.type_of(value) is None for value in inputs):
        _infer_from_one(node, found)
        return
    if node.op_type == "Shape":
        with suppress(Exception):
            _note(node, _shape_of(node, found), found)
        return
    proto = ir.to_proto(node)
    types = {value.name or "": found.type_of(value) for value in inputs}
    data = {
        value.name or "": numpy_helper.from_array(found.constants[value], value.name or "")
        for value in inputs
        if value in found.constants
    }
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
        outputs = onnx.shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=ir_version
        )
    except Exception as error:  # damaged, or beyond what inference can tell
        if "ShapeInferenceError" in str(error):
            reason = str(error).rpartition("]")[2].strip()
            problem = f"cannot take inputs of these sizes ({reason})"
            raise ModelError(f"node '{node.name}'", problem, "choose a context that the model was made for") from error
        return
    for value in node.outputs:
        tensor = outputs[value.name].tensor_type if value.name in outputs else None
        if tensor is not None and tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            found.set(value, tuple(d.dim_value for d in tensor.shape.dim), ir.DataType(tensor.elem_type))
    if not inputs or len(data) < len({value.name for value in inputs}) or is_random(node):
        return
    shapes = [found[value] for value in node.outputs]
    known = all(shape is not None and prod(shape) <= _SMALL for shape in shapes)
    if known or node.op_type == "NonZero":
        with suppress(Exception):
            _note(node, _evaluate(proto, opset, data), found)


def _infer_from_one(node: ir.Node, found: Shapes) -> None:
    """The shape that does not depend on how much data there is, such as which tokens an expert has."""
    first = node.inputs[0]
    known = found[first]
    if node.op_type in ("ScatterND", "ScatterElements") and known is not None and first is not None:
        found.set(node.outputs[0], known, ir.DataType(found.type_of(first).tensor_type.elem_type))  # type: ignore[union-attr]


def _shape_of(node: ir.Node, found: Shapes) -> list[np.ndarray]:
    shape = found[node.inputs[0]] or ()
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", len(shape))
    return [np.array(shape[start:end], np.int64)]


def _evaluate(proto: onnx.NodeProto, opset: int, data: dict[str, onnx.TensorProto]) -> list[np.ndarray]:
    runs = ReferenceEvaluator(proto, opsets={"": opset})
    return [np.asarray(array) for array in runs.run(None, {name: numpy_helper.to_array(t) for name, t in data.items()})]


def _note(node: ir.Node, arrays: Sequence[np.ndarray], found: Shapes) -> None:
    for value, array in zip(node.outputs, arrays, strict=True):
        dtype = ir.DataType.from_numpy(array.dtype)
        found.set(value, array.shape, dtype)
        if dtype in _COMPUTED and array.size <= _SMALL:
            found.constants[value] = array
