"""Find attention in a graph, by its structure: the product of softmax(q kT) with v, and what leads to q, k and v.

What exporters write differs in the order of scales, reshapes, casts and rotary embeddings. So this reads backwards,
through whatever of these comes, and notes what it passed. `fuse_attention.py` then compares what it has read with the
graph itself, on random numbers: a wrong reading is not taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from qxcompiler.cost.shapes import Shape, Shapes
from qxcompiler.graph.nodes import is_standard

__all__ = ["Attention", "Mask", "Operand", "find_attentions"]

_HEADS_INSIDE = (0, 2, 1, 3)  # [B, H, L, D] of [B, L, H, D]
_LAST_TWO, _KEYS_BY_TOKEN = (0, 1, 3, 2), (0, 2, 3, 1)  # [B, H, D, T] of [B, H, T, D], of [B, T, H, D]
_NO_CHANGE = ("Identity", "Cast", "Dropout")
_REPEATS = ("Reshape", "Expand", "Unsqueeze", "Gather", "Tile")
_LEAVES_WHOLE = ("Expand", "Identity")
_MASKED = -1e4  # what is at most that is taken for a mask's "no"


@dataclass
class Operand:
    """Query, key or value.

    Attributes:
        value: where it comes from, [B, L, H * D], [B, L, H, D] or [B, H, L, D].
        by_head: whether the heads come before the tokens.
        heads: H.
        factor: what it was multiplied by on its way.
        rotary: cosine and sine, [.., L, R], which it is rotated with; None for neither.
        past: what the new ones are appended to, [B, H, P, D]; None for nothing.
        present: the sum of both, which the model keeps.
    """

    value: ir.Value
    by_head: bool
    heads: int
    factor: float = 1.0
    rotary: tuple[ir.Value, ir.Value] | None = None
    past: ir.Value | None = None
    present: ir.Value | None = None


@dataclass(frozen=True)
class Mask:
    """What is added to the scores: `value`, or of a condition `yes` where it holds and `no` where not."""

    value: ir.Value
    yes: float | None = None
    no: float | None = None


@dataclass
class Attention:
    """One attention, as it stands in a graph.

    Attributes:
        softmax: its node.
        query, key, value: what it multiplies.
        scale: of the scores.
        softcap: the scores' limit, 0 for none.
        masks: what is added to the scores.
        output: what comes of it, [B, L, H * D] if `merged`, else [B, H, L, D].
        head_size: D.
    """

    softmax: ir.Node
    query: Operand
    key: Operand
    value: Operand
    scale: float
    softcap: float
    masks: list[Mask]
    output: ir.Value
    merged: bool
    head_size: int


class Unrecognized(Exception):  # noqa: N818
    """Why an attention is not taken."""


def find_attentions(model: ir.Model, shapes: Shapes) -> Iterator[tuple[ir.Node, Attention | str]]:
    """Every softmax over a product of activations that weighs a third: its node, and what was read, or why nothing.

    Args:
        model: normalized, in any stage.
        shapes: of its values, for one choice of the free sizes.
    """
    for node in model.graph:
        if not is_standard(node, ("Softmax",)):
            continue
        reader = _Reader(shapes)
        weighed = reader.weighed_by(node.outputs[0])
        scores = weighed and reader.product_before(node.inputs[0])
        if not scores or not weighed:
            continue
        try:
            yield node, reader.read(node, scores, weighed)
        except Unrecognized as error:
            yield node, str(error)


@dataclass
class _Scores:
    """What lies between the product and the softmax."""

    factor: float = 1.0
    softcap: float = 0.0
    masks: list[Mask] = field(default_factory=list)


class _Reader:
    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self.leaves_whole: tuple[str, ...] = _LEAVES_WHOLE

    def read(self, softmax: ir.Node, product: ir.Node, weighed: ir.Node) -> Attention:
        if softmax.inputs[0] is None or self.shapes[softmax.inputs[0]] is None:
            raise Unrecognized("its shapes depend on data")
        rank = len(self.shape(softmax.inputs[0]))
        if softmax.attributes.get_int("axis", -1) not in (-1, rank - 1):
            raise Unrecognized("the softmax is not over the last axis")
        size = self.shape(product.inputs[0])[-1]
        if self.shape(weighed.inputs[1])[-1] != size:
            raise Unrecognized("keys and values are of different sizes")
        query, key, value = self.operands(product, weighed, rotated=True)
        if (query.rotary is None) != (key.rotary is None):  # before something that is not understood
            query, key, value = self.operands(product, weighed, rotated=False)
        if query.past or query.heads % key.heads or key.heads != value.heads or value.rotary or value.factor != 1:
            raise Unrecognized("query, key and value do not fit together")
        if (key.past is None) != (value.past is None):
            raise Unrecognized("of keys and values, one is kept")
        # a slice of the mask to as many tokens as there are keys asks for their shape: of keys that are kept, it is all
        self.leaves_whole = ("Slice", *_LEAVES_WHOLE) if key.past is not None else _LEAVES_WHOLE
        passed = self.scores(softmax.inputs[0], product)
        output, merged = self.merged(weighed.outputs[0])
        scale = passed.factor * query.factor * key.factor
        return Attention(softmax, query, key, value, scale, passed.softcap, passed.masks, output, merged, size)

    def weighed_by(self, probabilities: ir.Value) -> ir.Node | None:
        """The product that the probabilities enter first."""
        value = probabilities
        while True:
            nodes = [node for node in value.consumers() if not is_standard(node, ("IsNaN", "Shape"))]
            if len(nodes) != 1 or value.is_graph_output():
                return None
            node = nodes[0]
            if is_standard(node, ("MatMul",)) and node.inputs[0] is value:
                return node if not self.is_constant(node.inputs[1]) else None
            if not is_standard(node, (*_NO_CHANGE, "Where", "Reshape")):
                return None
            value = node.outputs[0]

    def product_before(self, value: ir.Value | None) -> ir.Node | None:
        """The product of activations that scores are, before masks and scales."""
        node = value.producer() if value is not None else None
        if node is None:
            return None
        if is_standard(node, ("MatMul",)):
            return None if any(self.is_constant(each) for each in node.inputs) else node
        if is_standard(node, ("Add", "Mul", "Div", "Where", "Tanh", "Reshape", *_NO_CHANGE)):
            inputs = {"Where": node.inputs[1:], "Reshape": node.inputs[:1]}.get(node.op_type, node.inputs[:2])
            return next((found for each in inputs if (found := self.product_before(each))), None)
        return None

    def scores(self, value: ir.Value | None, product: ir.Node) -> _Scores:
        """What is done to the product, backwards from the softmax: masks, then the softcap, then scales."""
        passed = _Scores()
        limit = None  # the factor after the hyperbolic tangent
        while value is not product.outputs[0]:
            node = value.producer() if value is not None else None
            assert node is not None  # `product_before` came along
            if is_standard(node, _NO_CHANGE):
                value = node.inputs[0]
            elif is_standard(node, ("Reshape",)):
                raise Unrecognized("its scores have not four axes")
            elif is_standard(node, ("Add", "Where")):
                if passed.factor != 1 or passed.softcap:
                    raise Unrecognized("a mask comes before a scale")
                value = self.unmasked(node, product, passed.masks)
            elif is_standard(node, ("Tanh",)):
                if limit is None:
                    raise Unrecognized("a hyperbolic tangent limits nothing")
                passed.softcap, limit, passed.factor, value = limit, None, 1.0, node.inputs[0]
            else:
                value, factor = self.unscaled_once(node)
                if passed.softcap or not is_standard(value.producer(), ("Tanh",)):  # type: ignore[arg-type]
                    passed.factor *= factor
                else:
                    limit = factor
        if passed.softcap:
            passed.factor *= passed.softcap  # softcap * tanh(factor * x): the operator divides by the softcap itself
        return passed

    def unmasked(self, node: ir.Node, product: ir.Node, masks: list[Mask]) -> ir.Value | None:
        """The scores that a node adds a mask to, or puts a constant in the place of."""
        first, second = node.inputs[-2:]
        before = self.product_before(first) is product
        scores, other = (first, second) if before else (second, first)
        assert other is not None
        if node.op_type == "Add":
            masks.append(self.as_mask(other))
            return scores
        constant, condition = self.number(other), node.inputs[0]
        if constant is None or constant > _MASKED or condition is None:
            raise Unrecognized("scores are replaced by something else than a large negative number")
        yes, no = (0.0, constant) if before else (constant, 0.0)
        masks.append(Mask(self.whole(condition), yes, no))
        return scores

    def as_mask(self, value: ir.Value) -> Mask:
        """A mask, of its condition where it is made of one, before slices that leave it as it is."""
        value = self.whole(value)
        node = value.producer()
        if node is not None and is_standard(node, ("Where",)):
            yes, no = self.number(node.inputs[1]), self.number(node.inputs[2])
            if yes is not None and no is not None and node.inputs[0] is not None:
                return Mask(self.whole(node.inputs[0]), yes, no)
        return Mask(value)

    def whole(self, value: ir.Value) -> ir.Value:
        """What a value is, before a slice or an expansion that changes nothing."""
        while True:
            node = value.producer()
            if node is None or not is_standard(node, self.leaves_whole) or node.inputs[0] is None:
                return value
            if self.shapes[node.inputs[0]] != self.shapes[value]:
                return value
            value = node.inputs[0]

    def operands(self, product: ir.Node, weighed: ir.Node, *, rotated: bool) -> tuple[Operand, Operand, Operand]:
        """Query, key and value."""
        keys, factor = self.unscaled(product.inputs[1])
        keys, by_token = self.before_transposition(keys)
        query = self.operand(product.inputs[0], 1.0, rotated)
        value = self.operand(weighed.inputs[1], 1.0, rotated)
        if by_token:
            return query, Operand(self.flat(keys), False, self.shape(keys)[2], factor), value
        return query, self.operand(keys, factor, rotated), value

    def before_transposition(self, keys: ir.Value) -> tuple[ir.Value, bool]:
        """Keys [B, H, T, D] of those that the product takes, [B, H, D, T]; or by token, [B, T, H, D]."""
        if (before := inputs_of(keys, "Transpose")) and order_of(keys) in (_LAST_TWO, _KEYS_BY_TOKEN):
            return before[0], order_of(keys) == _KEYS_BY_TOKEN
        batch, heads, size, length = self.shape(keys)
        for joined in inputs_of(keys, "Reshape")[:1]:  # batch and heads as one axis, as PyTorch's exporter writes
            for whole in inputs_of(joined, "Transpose"):
                before = inputs_of(whole, "Reshape")
                if before and self.shapes[before[0]] == (batch, heads, length, size) and order_of(joined) == (0, 2, 1):
                    return before[0], False
        raise Unrecognized("the keys are not transposed")

    def operand(self, value: ir.Value | None, factor: float, rotated: bool) -> Operand:
        """What leads to query, key or value [B, H, L, D]."""
        value, scale = self.unscaled(value)
        factor *= scale
        value = self.not_repeated(value)
        heads, past, present = self.shape(value)[1], None, None
        node = value.producer()
        if node is not None and is_standard(node, ("Concat",)) and self.is_kept(node, value):
            past, present = node.inputs[0], value
            value, scale = self.unscaled(node.inputs[1])
            if scale != 1:
                raise Unrecognized("keys or values are scaled before they are kept")
        rotary = None
        if rotated:
            value, rotary = self.not_rotated(value)
        if past is None:
            value, scale = self.unscaled(value)
            factor *= scale
        if (by_token := inputs_of(value, "Transpose")) and order_of(value) == _HEADS_INSIDE:
            return Operand(self.flat(by_token[0]), False, heads, factor, rotary, past, present)
        return Operand(value, True, heads, factor, rotary, past, present)

    def flat(self, value: ir.Value) -> ir.Value:
        """What a value [B, L, H, D] was before its heads were told apart, [B, L, H * D]; itself if nothing."""
        shape, before = self.shape(value), inputs_of(value, "Reshape")
        flat = (*shape[:2], shape[2] * shape[3])
        return before[0] if before and self.shapes[before[0]] == flat else value

    def shape(self, value: ir.Value | None) -> Shape:
        """A shape of four axes."""
        shape = self.shapes[value]
        if shape is None or len(shape) != 4:
            raise Unrecognized("query, key and value have not four axes")
        return shape

    def not_repeated(self, value: ir.Value) -> ir.Value:
        """Keys or values before each of them serves several heads."""
        found, current, shape = value, value, self.shape(value)
        while (node := current.producer()) is not None and is_standard(node, _REPEATS) and node.inputs[0] is not None:
            if node.op_type == "Gather" and node.attributes.get_int("axis", 0) != 1:
                break
            current = node.inputs[0]
            before = self.shapes[current]
            if before is None or len(before) == 3:
                break
            if len(before) == 4 and (before[0], before[2:]) == (shape[0], shape[2:]) and shape[1] % before[1] == 0:
                found = current
        return found

    def is_kept(self, concat: ir.Node, value: ir.Value) -> bool:
        axis = concat.attributes.get_int("axis", 0)
        past = concat.inputs[0]
        return (
            len(concat.inputs) == 2
            and axis in (2, -2)
            and past is not None
            and past.is_graph_input()
            and (value.is_graph_output())
        )

    def not_rotated(self, value: ir.Value) -> tuple[ir.Value, tuple[ir.Value, ir.Value] | None]:
        """A value before a rotary embedding of all its channels, or of the first; cosine and sine."""
        if len(parts := inputs_of(value, "Concat")) == 2:
            inner, rotary = self.not_rotated(parts[0])
            whole = part_of(inner)
            return (whole, rotary) if rotary and whole is not None and whole is part_of(parts[1]) else (value, None)
        products = [inputs_of(each, "Mul") for each in inputs_of(value, "Add")]
        if len(products) != 2 or not all(products):
            return value, None
        for straight, turned in (products, products[::-1]):
            for x, cosine in (straight, straight[::-1]):
                for half, sine in (turned, turned[::-1]):
                    if turned_by(half) is x:
                        return x, (cosine, sine)
        return value, None

    def merged(self, value: ir.Value) -> tuple[ir.Value, bool]:
        """The output with its heads side by side, [B, L, H * D], where the graph makes that next; else as it is."""
        shape = self.shapes[value]
        current = value
        for operator in ("Transpose", "Reshape"):
            nodes = [node for node in current.consumers() if not is_standard(node, ("Shape",))]
            if len(nodes) != 1 or current.is_graph_output() or not is_standard(nodes[0], (operator,)):
                return value, False
            if operator == "Transpose" and order_of(nodes[0].outputs[0]) != _HEADS_INSIDE:
                return value, False
            current = nodes[0].outputs[0]
        assert shape is not None
        merged = (shape[0], shape[2], shape[1] * shape[3])
        return (current, True) if self.shapes[current] == merged else (value, False)

    def unscaled(self, value: ir.Value | None) -> tuple[ir.Value, float]:
        """A value before products with numbers, and their product."""
        assert value is not None
        factor = 1.0
        while (node := value.producer()) is not None:
            if (before := inputs_of(value, *_NO_CHANGE)) and self.same_type(before[0], value):
                value = before[0]
            elif is_standard(node, ("Mul", "Div")) and any(self.number(each) is not None for each in node.inputs):
                value, each = self.unscaled_once(node)
                factor *= each
            else:
                break
        return value, factor

    def unscaled_once(self, node: ir.Node) -> tuple[ir.Value, float]:
        first, second = node.inputs[:2]
        left, right = self.number(first), self.number(second)
        if node.op_type == "Mul" and right is not None and first is not None:
            return first, right
        if node.op_type == "Mul" and left is not None and second is not None:
            return second, left
        if node.op_type == "Div" and right and first is not None:
            return first, 1 / right
        raise Unrecognized(f"scores pass {node.op_type}")

    def same_type(self, first: ir.Value, second: ir.Value) -> bool:
        types = [self.shapes.type_of(value) for value in (first, second)]
        known = [each.tensor_type.elem_type for each in types if each is not None]
        return len(known) == 2 and known[0] == known[1]

    def number(self, value: ir.Value | None) -> float | None:
        """The number that a constant is."""
        array = self.shapes.constants.get(value) if value is not None else None
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None

    def is_constant(self, value: ir.Value | None) -> bool:
        return value is None or value.is_initializer() or value in self.shapes.constants


def inputs_of(value: ir.Value | None, *operators: str) -> list[ir.Value]:
    """What a value is made of, if one of these operators makes it; else nothing."""
    node = value.producer() if value is not None else None
    if node is None or not is_standard(node, operators):
        return []
    return [each for each in node.inputs if each is not None]


def order_of(value: ir.Value) -> tuple[int, ...]:
    """The axes that the transposition reads that makes a value, in their order."""
    node = value.producer()
    return tuple(node.attributes.get_ints("perm", ())) if node is not None else ()


def part_of(value: ir.Value | None) -> ir.Value | None:
    """What a value is a part of."""
    return next(iter(inputs_of(value, "Slice", "Split")), None)


def turned_by(value: ir.Value) -> ir.Value | None:
    """x of concat(-x[R / 2:], x[:R / 2])."""
    halves = inputs_of(value, "Concat")
    if len(halves) != 2 or not (negated := inputs_of(halves[0], "Neg")):
        return None
    whole = part_of(negated[0])
    return whole if whole is part_of(halves[1]) else None
