"""What the operators that read an input say about it: sizes that its declaration leaves open, the range of integers.

An input is followed through operators that keep its numbers, up to those that say something: a `Conv` knows how many
channels it takes, a `Gather` from a constant table how many rows there are.
"""

from __future__ import annotations

__all__ = ["IntegerUse", "Sizes", "integer_use", "merged", "sizes"]

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from qxcompiler.runtime_ops.operators import operator_of

_CHAIN = 24  # operators between a constant and what reads it
_FARTHEST = 200  # values that an input is followed to
_SMALL = 64  # a constant of so many elements may be read for its values

_KEEPS_SHAPE = {
    "Identity", "Cast", "CastLike", "Dropout", "Relu", "Sigmoid", "Tanh", "Clip", "Abs", "Neg", "Exp", "Log", "Sqrt",
    "Softmax", "LogSoftmax", "LayerNormalization", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear",
    "LeakyRelu", "Elu", "Gelu", "Erf", "HardSigmoid", "HardSwish", "Not", "Round", "Floor", "Ceil", "Reciprocal",
}  # fmt: skip
_BROADCASTS = {"Add", "Sub", "Mul", "Div", "Pow", "PRelu", "Max", "Min", "Where"}
# Operators whose outputs hold integers of their first inputs (`Where`: of the second and third).
_KEEPS_NUMBERS = {
    "Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Slice", "Concat", "Expand", "Tile",
    "Split", "Gather", "GatherElements", "GatherND", "Clip", "Where", "Max", "Min", "Pad", "Abs", "Optional",
    "OptionalGetElement",
}  # fmt: skip
_RECURRENT = {"LSTM", "GRU", "RNN"}
# Inputs that are sizes or positions in another tensor.
_SHAPE_INPUTS = {
    "Reshape": {1}, "Expand": {1}, "Tile": {1}, "ConstantOfShape": {0}, "Range": {0, 1, 2}, "Slice": {1, 2, 3, 4},
    "Resize": {3}, "TopK": {1}, "Pad": {1}, "Split": {1}, "Loop": {0}, "Unsqueeze": {1}, "Squeeze": {1},
    "OneHot": {1}, "Upsample": {1}, "CumSum": {1}, "ReduceSum": {1}, "ReduceMean": {1},
}  # fmt: skip
_EMBED_TABLES = {0: 2, 1: 4}  # EmbedLayerNormalization: ids and their table, segments and theirs


@dataclass
class Sizes:
    """What is known of a tensor's shape.

    Attributes:
        rank: None if unknown.
        left: sizes of axes counted from the first, 0.
        right: sizes of axes counted from the last, -1.
    """

    rank: int | None = None
    left: dict[int, int] = field(default_factory=dict)
    right: dict[int, int] = field(default_factory=dict)

    def learn(self, other: Sizes) -> None:
        """Take over what the other knows besides."""
        self.rank = self.rank if self.rank is not None else other.rank
        self.left = other.left | self.left
        self.right = other.right | self.right

    def dims(self, rank: int) -> list[int | None]:
        """The size of each axis of a tensor of this rank, None where it is free."""
        found = {axis: size for axis, size in self.left.items() if axis < rank}
        found |= {rank + axis: size for axis, size in self.right.items() if rank + axis >= 0}
        return [found.get(axis) for axis in range(rank)]


@dataclass
class IntegerUse:
    """What the integers of an input are for.

    Attributes:
        rows: they index tables with at least so many rows; None if none.
        compared: constants that they are compared with.
        is_size: whether they are a size, or a position in another tensor.
        is_length: whether they are lengths of sequences.
    """

    rows: int | None = None
    compared: list[int] = field(default_factory=list)
    is_size: bool = False
    is_length: bool = False


def sizes(value: ir.Value) -> Sizes:
    """What the operators that read a value take for its shape."""
    return _sizes(value, set())


def _sizes(value: ir.Value, seen: set[ir.Value]) -> Sizes:
    """The same, for a value that is reached in several ways only once, and not from too far."""
    known = Sizes(None if value.shape is None else len(value.shape))
    if value in seen or len(seen) == _FARTHEST:
        return known
    seen.add(value)
    for use in value.uses():
        known.learn(_sizes_at(use.node, use.idx, known.rank, seen))
    return known


def _sizes_at(node: ir.Node, position: int, rank: int | None, seen: set[ir.Value]) -> Sizes:
    """What one operator takes for the shape of one of its inputs."""
    weights = [_constant_shape(value) for value in node.inputs]
    weight = next((shape for at, shape in enumerate(weights) if at != position and shape), None)
    match node.op_type:
        case "Conv" | "ConvTranspose" if position == 0 and weight and len(weight) > 2:
            transposed = node.op_type == "ConvTranspose"
            groups = 1 if transposed else node.attributes.get_int("group", 1)
            return Sizes(len(weight), {1: weight[0] if transposed else weight[1] * groups})
        case "MatMul" if position == 0 and weight and len(weight) > 1:
            return Sizes(None, {}, {-1: weight[-2]})
        case "MatMul" if position == 1 and weight and len(weight) > 1:
            return Sizes(None, {}, {-2: weight[-1]})
        case "Gemm" if position == 0 and weight and len(weight) == 2:
            size = weight[1 if node.attributes.get_int("transB", 0) else 0]
            return Sizes(2, {0 if node.attributes.get_int("transA", 0) else 1: size})
        case name if name in _RECURRENT and position in (0, 5, 6):
            W, R = (weights[at] if at < len(weights) else None for at in (1, 2))
            if position == 0:
                return Sizes(3, {2: W[2]} if W and len(W) == 3 else {})
            return Sizes(3, {0: R[0], 2: R[2]} if R and len(R) == 3 else {})
        case "BatchNormalization" | "InstanceNormalization" if position == 0 and weight:
            return Sizes(None, {1: weight[0]})
        case "Transpose":
            after = _sizes(node.outputs[0], seen)
            perm = node.attributes.get_ints("perm", None)
            if perm is None:
                return Sizes(rank)
            dims = after.dims(len(perm))
            return Sizes(len(perm), {axis: size for axis, size in zip(perm, dims, strict=True) if size is not None})
        case "Unsqueeze":
            axes = _constant_ints(node.inputs[1]) if len(node.inputs) > 1 else None
            after = _sizes(node.outputs[0], seen)
            if not axes or after.rank is None:
                return Sizes(rank)
            added = {axis % after.rank for axis in axes}
            dims = [size for axis, size in enumerate(after.dims(after.rank)) if axis not in added]
            return Sizes(len(dims), {axis: size for axis, size in enumerate(dims) if size is not None})
        case name if (name in _KEEPS_SHAPE and position == 0) or name in _BROADCASTS:
            after = _sizes(node.outputs[0], seen)
            if name in _BROADCASTS and weight:
                after.learn(Sizes(None, {}, {-at: size for at, size in enumerate(weight[::-1], 1) if size > 1}))
            return after
    return Sizes(rank)


def integer_use(value: ir.Value) -> IntegerUse:
    """What the integers of a value are for."""
    found = IntegerUse()
    queue, seen = deque([(value, 0)]), {value}
    while queue:
        value, offset = queue.popleft()
        for use in value.uses():
            node, position = use.node, use.idx
            _note(found, node, position, offset)
            if node.op_type in ("Add", "Sub"):
                other = _constant_ints(node.inputs[1 - position])
                if other is None:
                    continue
                shift = max(other, default=0) if node.op_type == "Add" else 0
            elif _keeps_numbers(node, position):
                shift = 0
            else:
                continue
            for output in node.outputs:
                if output not in seen:
                    seen.add(output)
                    queue.append((output, offset + shift))
    return found


def _keeps_numbers(node: ir.Node, position: int) -> bool:
    """Whether the outputs of a node hold numbers of one of its inputs as they are."""
    if node.op_type == "Where":
        return position > 0
    return node.op_type in _KEEPS_NUMBERS and (position == 0 or node.op_type in ("Concat", "Max", "Min"))


def _note(found: IntegerUse, node: ir.Node, position: int, offset: int) -> None:
    rows = _rows(node, position)
    if rows is not None:
        rows = max(rows - offset, 1)
        found.rows = rows if found.rows is None else min(rows, found.rows)
    if node.op_type in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
        found.compared += [number - offset for number in _constant_ints(node.inputs[1 - position]) or []]
    found.is_size |= position in _SHAPE_INPUTS.get(node.op_type, ())
    found.is_length |= node.op_type in _RECURRENT and position == 4


def _rows(node: ir.Node, position: int) -> int | None:
    """How many rows there are to choose from, where an input of a node chooses rows of a constant."""
    if position == 0 and (ours := operator_of(node)) and ours.kind == "Gather":
        return node.attributes.get_int("N", None)
    if node.op_type == "EmbedLayerNormalization" and position in _EMBED_TABLES:
        table = _EMBED_TABLES[position]
        shape = _constant_shape(node.inputs[table]) if table < len(node.inputs) else None
        return shape[0] if shape else None
    if node.op_type == "GatherBlockQuantized" and position == 1:
        shape = _constant_shape(node.inputs[2])  # of scales
        return shape[0] if shape else None
    if node.op_type in ("Gather", "GatherElements", "GatherND") and position == 1:
        shape = _constant_shape(node.inputs[0]) or _static_shape(node.inputs[0])
        if not shape:
            return None
        axis = node.attributes.get_int("axis", 0)
        return min(shape) if node.op_type == "GatherND" else shape[axis] if -len(shape) <= axis < len(shape) else None
    if node.op_type == "OneHot" and position == 0:
        depth = _constant_ints(node.inputs[1])
        return depth[0] if depth else None
    return None


def _constant_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of a constant, also of one that is cast, dequantized or copied."""
    for _ in range(_CHAIN):
        if value is None:
            return None
        if value.const_value is not None:
            return tuple(value.const_value.shape.numpy())
        node = value.producer()
        if node is None or node.op_type not in ("Identity", "Cast", "DequantizeLinear", "Transpose"):
            return None
        if node.op_type == "Transpose":
            shape = _constant_shape(node.inputs[0])
            perm = node.attributes.get_ints("perm", None)
            if shape is None or (perm is not None and sorted(perm) != list(range(len(shape)))):
                return None
            return shape[::-1] if perm is None else tuple(shape[axis] for axis in perm)
        value = node.inputs[0]
    return None


def _static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    if value is None or value.shape is None or not all(isinstance(size, int) for size in value.shape):
        return None
    return tuple(value.shape.numpy())


def _constant_ints(value: ir.Value | None) -> list[int] | None:
    """The numbers of a small constant of integers (of whole numbers, if it is of floats)."""
    tensor = None if value is None else value.const_value
    if tensor is None or tensor.size > _SMALL or tensor.dtype == ir.DataType.STRING:
        return None
    numbers = np.asarray(tensor.numpy()).astype(np.float64).ravel()
    return [int(number) for number in numbers if np.isfinite(number) and number == np.floor(number)]


def merged(declared: tuple[int | str | None, ...], learnt: Sizes) -> list[int | str | None]:
    """The declared sizes, with free ones replaced where the operators say more."""
    return [
        mine if isinstance(mine, int) else other if other is not None else mine
        for mine, other in zip(declared, learnt.dims(len(declared)), strict=True)
    ]
