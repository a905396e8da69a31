"""Compute attention in one operator, with its rotary embedding and its cache."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qxcompiler.cost.shapes import Shapes
from qxcompiler.errors import ModelError
from qxcompiler.graph.nodes import is_standard, replace_value
from qxcompiler.passes.attention_pattern import Attention, Mask, Operand, Unrecognized, find_attentions
from qxcompiler.passes.example_shapes import example_shapes
from qxcompiler.passes.piece import Piece
from qxcompiler.passes.rewriting import Additions, add_functions
from qxcompiler.runtime_ops.attention import AttentionType
from qxcompiler.runtime_ops.operators import DOMAIN

__all__ = ["FuseAttention"]

_TOLERANCE = {ir.DataType.FLOAT: 1e-4, ir.DataType.FLOAT16: 2e-2}


class FuseAttention(ir.passes.InPlacePass):
    """Compute attention in one operator, with its rotary embedding and its cache.

    - softmax(q kT) v of four-dimensional activations becomes `Attention`; where query and keys are rotated by
      position, `RotaryAttention`; where keys and values are appended to a past, `CachedAttention` or
      `RotaryCachedAttention`, which gives what is kept too.
    - Scales, a softcap and masks, of which each may be there or not, become the operator's.
    - Heads that share keys need no copies of them; what computed the copies goes.
    - Each is compared with what stood there, on random numbers of two choices of sizes, before it is taken.

    Args:
        samples: of the model's inputs, whose sizes tell what tokens and batches do not: channels, height and width.

    Attributes:
        notes: which attention was left as it is, and why.
    """

    def __init__(self, samples: Sequence[Mapping[str, np.ndarray]] = ()) -> None:
        self.samples = samples
        self.notes: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the model in place."""
        self.notes = []
        if not any(is_standard(node, ("Softmax",)) for node in model.graph):
            return ir.passes.PassResult(model, modified=False)
        try:
            shapes = example_shapes(model, self.samples)
        except ModelError as error:
            self.notes.append(f"attention is computed node by node: {error}")
            return ir.passes.PassResult(model, modified=False)
        writer = _Writer(model, shapes)
        operators, left = set(), dict[str, list[str]]()
        for softmax, found in list(find_attentions(model, shapes[0])):
            try:
                if isinstance(found, str):
                    raise Unrecognized(found)
                operators.add(writer.write(found))
            except Unrecognized as error:
                left.setdefault(str(error), []).append(softmax.name or "")
        for why, (first, *more) in left.items():
            others = f" and at {len(more)} more" if more else ""
            self.notes.append(f"attention at '{first}'{others} is computed node by node: {why}")
        if operators:
            add_functions(model, operators)
            model.graph.sort()
            ir.passes.common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(operators))


class _Writer:
    """Writes attention operators; masks and tables that several layers share are made once."""

    def __init__(self, model: ir.Model, shapes: Sequence[Shapes]) -> None:
        self.model, self.shapes = model, shapes
        self.additions = Additions(model)
        self.shared: dict[Hashable, ir.Value] = {}
        self.nodes: list[ir.Node] = []

    def write(self, attention: Attention) -> str:
        """Put the operator in the attention's place; its name.

        Raises:
            Unrecognized: it computes something else.
        """
        self.nodes = []
        key, value = attention.key, attention.value
        kind = AttentionType(rotary=key.rotary is not None, cached=key.past is not None)
        size = attention.head_size
        inputs = {
            "query": self.rows(attention.query, size),
            "key": self.rows(key, size),
            "value": self.rows(value, size),
            "mask": self.mask(attention),
        }
        if key.past is not None and value.past is not None:
            inputs |= {"past_key": key.past, "past_value": value.past}
        if attention.query.rotary and key.rotary:
            if attention.query.rotary != key.rotary:
                raise Unrecognized("query and keys are rotated by different angles")
            inputs |= dict(zip(("cos", "sin"), map(self.table, key.rotary), strict=True))
        attributes = {
            "num_heads": attention.query.heads,
            "kv_num_heads": key.heads,
            "scale": attention.scale,
            "softcap": attention.softcap,
        }
        name = f"{attention.softmax.name}.attention"
        fused = self.additions.node(
            kind.name,
            [inputs[each] for each in kind.inputs],
            attributes,
            domain=DOMAIN,
            name=name,
            outputs=len(kind.outputs),
        )
        self.nodes.append(fused)
        output = fused.outputs[0]
        if not attention.merged:
            by_head = self.constant(0, 0, attention.query.heads, size)
            output = self.made("Transpose", self.made("Reshape", output, by_head), perm=[0, 2, 1, 3])
        old = [attention.output, *(each.present for each in (key, value) if each.present is not None)]
        new = [output, *fused.outputs[1:]]
        for shapes in self.shapes:
            self.compare(attention, old, new, shapes)
        for each in (key, value):
            self.part_shape_from_past(each)
        for before, after in zip(old, new, strict=True):
            replace_value(before, after)
        self.model.graph.extend(self.nodes)
        return kind.name

    def part_shape_from_past(self, operand: Operand) -> None:
        """Let what asks for the shape of all keys have it before there are any: a mask may depend on it."""
        if operand.past is None or operand.present is None:
            return
        length = self.made("Shape", operand.value, start=1, end=2)
        grown = self.made("Concat", self.constant(0, 0), length, self.constant(0), axis=0)
        shape = self.made("Add", self.made("Shape", operand.past), grown)
        for node in operand.present.consumers():
            if is_standard(node, ("Shape",)):
                start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", 4)
                replace_value(node.outputs[0], self.made("Slice", shape, self.constant(start), self.constant(end)))

    def compare(self, attention: Attention, old: Sequence[ir.Value], new: Sequence[ir.Value], shapes: Shapes) -> None:
        """Let both compute the same from random numbers."""
        key, value = attention.key, attention.value
        given = [attention.query.value, key.value, value.value, key.past, value.past]
        given += [before_unsqueeze(table, shapes) for table in key.rotary or ()]
        draws = np.random.default_rng(0)
        feeds = {each: random(each, shapes, draws) for each in given if each is not None}
        feeds |= {each.value: random_mask(each, shapes, draws) for each in attention.masks}
        # what follows from shapes alone is what it is: so are the values that follow from it
        feeds = {each: array for each, array in feeds.items() if each not in shapes.constants}
        dtype = ir.DataType.FLOAT
        try:
            dtype = dtype_of(attention.query.value, shapes)
            pair = [Piece(self.model, outputs, feeds, shapes.constants).run() for outputs in (old, new)]
        except (ModelError, KeyError) as error:
            raise Unrecognized(f"what it computes could not be compared ({error})") from error
        for before, after in zip(*pair, strict=True):
            limit = _TOLERANCE.get(dtype, 0.0)
            if before.shape != after.shape or not np.allclose(before, after, rtol=limit, atol=limit):
                raise Unrecognized("it computes something else than the operator would")

    def rows(self, operand: Operand, size: int) -> ir.Value:
        """Query, key or value as [B, L, H * D]."""
        value, width = operand.value, operand.heads * size
        if operand.by_head:
            value = self.made("Transpose", value, perm=[0, 2, 1, 3])
        elif self.shapes[0].shapes[value][2:] == (width,):
            return value
        return self.made("Reshape", value, self.constant(0, 0, width))

    def table(self, value: ir.Value) -> ir.Value:
        """Cosine or sine as [b, L, R]."""
        shape = self.shapes[0].shapes[value]
        value = before_unsqueeze(value, self.shapes[0])
        if len(self.shapes[0].shapes[value]) == 3 and len(shape) == 4:
            return value
        if len(shape) == 4 and shape[1] == 1:
            return self.once(("table", value), "Squeeze", value, self.constant(1))
        if len(shape) == 2:
            return self.once(("table", value), "Unsqueeze", value, self.constant(0))
        raise Unrecognized("cosine and sine differ from head to head")

    def mask(self, attention: Attention) -> ir.Value:
        """What is added to the scores, [b, h, l, T]."""
        present = attention.key.present
        dtype = dtype_of(attention.query.value, self.shapes[0])
        if not attention.masks:
            if present is not None:
                raise Unrecognized("no mask tells how many tokens are kept")
            zero = ir.tensor(np.zeros((1, 1, 1, 1), dtype.numpy()))
            return self.additions.shared(("no mask", dtype), "qxc.no_mask", zero)
        total: ir.Value | None = None
        key: tuple[Hashable, ...] = ()
        for mask in attention.masks:
            shape = self.shapes[0].shapes[mask.value]
            if present is not None and (not shape or shape[-1] != self.shapes[0].shapes[present][2]):
                raise Unrecognized("the mask does not tell how many tokens are kept")
            value = mask.value
            if mask.yes is not None and mask.no is not None:
                numbers = [self.number(number, dtype) for number in (mask.yes, mask.no)]
                value = self.once(("mask", value, mask.yes, mask.no), "Where", value, *numbers)
            if len(shape) < 4:
                value = self.once(("axes", value), "Unsqueeze", value, self.constant(*range(4 - len(shape))))
            key = (*key, value)
            total = value if total is None else self.once(("sum", *key), "Add", total, value)
        assert total is not None
        return total

    def made(self, operator: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        """The result of a new node."""
        name = f"{inputs[0].name}.{operator.lower()}"
        node = self.additions.node(operator, inputs, attributes, name=name)
        self.nodes.append(node)
        return node.outputs[0]

    def once(self, key: Hashable, operator: str, *inputs: ir.Value) -> ir.Value:
        """The result of a node that is made once; one of a comparison that failed does no harm."""
        if key not in self.shared:
            self.shared[key] = self.made(operator, *inputs)
            self.model.graph.append(self.nodes.pop())
        return self.shared[key]

    def constant(self, *numbers: int) -> ir.Value:
        return self.additions.shared(("sizes", numbers), "qxc.sizes", ir.tensor(np.array(numbers, np.int64)))

    def number(self, number: float, dtype: ir.DataType) -> ir.Value:
        return self.additions.shared(("number", number, dtype), "qxc.number", ir.tensor(number, dtype=dtype))


def before_unsqueeze(value: ir.Value, shapes: Shapes) -> ir.Value:
    """A table [b, L, R] that was given an axis for the heads; other values as they are."""
    node = value.producer()
    if node is None or not is_standard(node, ("Unsqueeze",)) or node.inputs[0] is None:
        return value
    before, shape = shapes[node.inputs[0]], shapes[value]
    return node.inputs[0] if before and shape and shape == (before[0], 1, *before[1:]) and len(shape) == 4 else value


def dtype_of(value: ir.Value, shapes: Shapes) -> ir.DataType:
    """A value's type.

    Raises:
        Unrecognized: it is not known.
    """
    found = shapes.type_of(value)
    if found is None:
        raise Unrecognized("types are not known")
    return ir.DataType(found.tensor_type.elem_type)


def random(value: ir.Value, shapes: Shapes, draws: np.random.Generator) -> np.ndarray:
    """Normal numbers."""
    return draws.standard_normal(shapes.shapes[value]).astype(dtype_of(value, shapes).numpy())


def random_mask(mask: Mask, shapes: Shapes, draws: np.random.Generator) -> np.ndarray:
    """A mask, or the condition of one, that leaves every row its first token."""
    shape, dtype = shapes.shapes[mask.value], dtype_of(mask.value, shapes)
    kept = draws.random(shape) < 0.6
    kept[..., 0] = True
    if mask.yes is not None:
        return (kept if mask.yes == 0 else ~kept).astype(dtype.numpy())
    return np.where(kept, draws.standard_normal(shape), -1e4).astype(dtype.numpy())
