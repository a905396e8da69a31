"""Write attention, rotary embeddings and norms that are one operator in the small ones that most exporters write."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qxcompiler.cost.shapes import Shape, Shapes
from qxcompiler.errors import ModelError
from qxcompiler.graph.nodes import is_standard, replace_value
from qxcompiler.passes.attention_pattern import Unrecognized
from qxcompiler.passes.example_shapes import example_shapes
from qxcompiler.passes.rewriting import Additions

__all__ = ["Unfold"]

_CONTRIB = "com.microsoft"
_HEADS_INSIDE = [0, 2, 1, 3]


class Unfold(ir.passes.InPlacePass):
    """Write operators that compute much in small ones, for the passes that find attention and norms there.

    - Of the standard: `Attention` and `RotaryEmbedding` (opset 23; PyTorch's exporter).
    - Of onnxruntime: `GroupQueryAttention`, `MultiHeadAttention`, `RotaryEmbedding`, `SkipLayerNormalization`,
      `SkipSimplifiedLayerNormalization` (onnxruntime-genai's builder; docs/ContribOperators.md there).
    - One with an option that the small ones would need many of stays as it is.

    A `GroupQueryAttention` is told how many keys each text has. It follows from the mask of the tokens, which hides
    what is zero in it, wherever that stands; a token's position is how many ones are before it.

    Args:
        samples: of the model's inputs, whose sizes tell what tokens and batches do not: channels, height and width.

    Attributes:
        notes: what was left as it is, and why.
    """

    def __init__(self, samples: Sequence[Mapping[str, np.ndarray]] = ()) -> None:
        self.samples = samples
        self.notes: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the model in place."""
        self.notes = []
        nodes = [node for node in model.graph if (node.domain, node.op_type) in _UNFOLDED]
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        try:
            writer = _Writer(model, example_shapes(model, self.samples))
        except ModelError as error:
            self.notes.append(f"'{nodes[0].name}' and its like stay as they are: {error}")
            return ir.passes.PassResult(model, modified=False)
        left = dict[str, list[str]]()
        for node in nodes:
            try:
                _UNFOLDED[node.domain, node.op_type](writer, _Inputs(node))
            except Unrecognized as error:
                left.setdefault(f"{node.op_type} {error}", []).append(node.name or "")
        for why, (first, *more) in left.items():
            others = f" and {len(more)} more" if more else ""
            self.notes.append(f"'{first}'{others}: {why}, and stays as it is")
        if writer.nodes:
            model.graph.extend(writer.nodes)
            model.graph.sort()
            ir.passes.common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(writer.nodes))


class _Inputs:
    """A node's inputs by their place, and its attributes."""

    def __init__(self, node: ir.Node) -> None:
        self.node = node

    def __getitem__(self, place: int) -> ir.Value | None:
        value = self.node.inputs[place] if place < len(self.node.inputs) else None
        return value if value is not None and value.name else None

    def needed(self, place: int) -> ir.Value:
        value = self[place]
        if value is None:
            raise Unrecognized("lacks an input")
        return value

    def integer(self, name: str, default: int = 0) -> int:
        return self.node.attributes.get_int(name, default)

    def number(self, name: str, default: float = 0.0) -> float:
        return self.node.attributes.get_float(name, default)

    def output(self, place: int) -> ir.Value | None:
        """An output that something reads."""
        value = self.node.outputs[place] if place < len(self.node.outputs) else None
        return value if value is not None and (value.uses() or value.is_graph_output()) else None

    def refuse(self, why: str, *, inputs: Sequence[int] = (), outputs: Sequence[int] = (), **values: int) -> None:
        """Leave a node as it is that has one of these inputs or outputs, or another value of these attributes.

        Raises:
            Unrecognized: it has.
        """
        given = any(self[place] is not None for place in inputs) or any(map(self.output, outputs))
        if given or any(self.integer(name, value) != value for name, value in values.items()):
            raise Unrecognized(why)


@dataclass(frozen=True)
class _Heads:
    """Query, key or value.

    Attributes:
        value: [B, count, L, size].
        whole: what it was made of, [B, L, count * size] or the same.
        count: of heads.
        size: of a head.
    """

    value: ir.Value
    whole: ir.Value
    count: int
    size: int


class _Writer:
    """Writes small operators; masks and tables that several layers share are made once.

    Attributes:
        nodes: what was written, for the graph.
    """

    def __init__(self, model: ir.Model, shapes: Sequence[Shapes]) -> None:
        self.shapes = shapes
        self.additions = Additions(model)
        self.nodes: list[ir.Node] = []
        self.shared: dict[Hashable, ir.Value] = {}
        self.apart: dict[ir.Value, _Heads] = {}  # the heads of what was put together from them

    def made(self, operator: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        """The result of a new node."""
        return self.several(operator, inputs, 1, **attributes)[0]

    def several(self, operator: str, inputs: Sequence[ir.Value], outputs: int, **attributes: object) -> list[ir.Value]:
        name = f"{inputs[0].name}.{operator.lower()}"
        node = self.additions.node(operator, inputs, attributes, name=name, outputs=outputs)
        self.nodes.append(node)
        return list(node.outputs)

    def once(self, key: Hashable, make: Callable[[], ir.Value]) -> ir.Value:
        """What was made for that key, now or before."""
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]

    def integers(self, *numbers: int) -> ir.Value:
        return self.additions.shared(("sizes", numbers), "qxc.sizes", ir.tensor(np.array(numbers, np.int64)))

    def integer(self, number: int) -> ir.Value:
        return self.additions.shared(("integer", number), "qxc.integer", ir.tensor(np.array(number, np.int64)))

    def number(self, number: float, dtype: ir.DataType) -> ir.Value:
        return self.additions.shared(("number", number, dtype), "qxc.number", ir.tensor(number, dtype=dtype))

    def shape(self, value: ir.Value) -> Shape:
        shape = self.shapes[0][value]
        if shape is None:
            raise Unrecognized("has inputs of unknown shape")
        return shape

    def type_of(self, value: ir.Value) -> ir.DataType:
        found = self.shapes[0].type_of(value)
        if found is None:
            raise Unrecognized("has inputs of unknown type")
        return ir.DataType(found.tensor_type.elem_type)

    def set_shape(self, value: ir.Value, like: ir.Value, width: int | None = None) -> None:
        """Note that a value has another's type and shape, but for the last axis."""
        for shapes in self.shapes:
            shape = shapes.shapes[like]
            shapes.set(value, shape if width is None else (*shape[:-1], width), self.type_of(like))

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Put a value in another's place, of which it has the type and the shape."""
        if self.shapes[0][old] is not None:
            self.set_shape(new, old)
        new.type, new.shape = old.type, old.shape
        replace_value(old, new)

    def heads(self, value: ir.Value, count: int) -> _Heads:
        """The heads of a value [B, L, count * D], or of [B, count, L, D]."""
        if value in self.apart:
            return self.apart[value]
        shape = self.shape(value)
        if len(shape) == 4:
            return _Heads(value, value, shape[1], shape[3])
        if len(shape) != 3 or not count or shape[2] % count:
            raise Unrecognized("has inputs of another layout")
        size = shape[2] // count
        apart = self.made("Reshape", value, self.integers(0, 0, count, size))
        return _Heads(self.made("Transpose", apart, perm=_HEADS_INSIDE), value, count, size)

    def split(self, value: ir.Value, *widths: int) -> list[ir.Value]:
        """Parts of the last axis."""
        parts = self.several("Split", [value, self.integers(*widths)], len(widths), axis=-1)
        for part, width in zip(parts, widths, strict=True):
            self.set_shape(part, value, width)
        return parts

    def together(self, value: ir.Value, width: int) -> ir.Value:
        """[B, L, heads * D] of [B, heads, L, D]."""
        return self.made("Reshape", self.made("Transpose", value, perm=_HEADS_INSIDE), self.integers(0, 0, width))

    def rotated(self, heads: _Heads, cos: ir.Value, sin: ir.Value, width: int) -> _Heads:
        """The first `width` of each head rotated by halves, with cosines and sines [B or 1, 1, L, width]."""
        size, axis, x = heads.size, self.integers(-1), heads.value

        def part(whole: ir.Value, start: int, end: int) -> ir.Value:
            return self.made("Slice", whole, self.integers(start), self.integers(end), axis)

        if width < size:
            x = part(heads.value, 0, width)
        turned = self.made("Concat", self.made("Neg", part(x, width // 2, width)), part(x, 0, width // 2), axis=-1)
        total = self.made("Add", self.made("Mul", x, cos), self.made("Mul", turned, sin))
        if width < size:
            total = self.made("Concat", total, part(heads.value, width, size), axis=-1)
        return _Heads(total, heads.whole, heads.count, size)

    def table(self, table: ir.Value, positions: ir.Value | None, width: int) -> ir.Value:
        """Cosines or sines [B or 1, 1, L, width], of a table [positions or B, .., half of it or more]."""

        def make() -> ir.Value:
            rows = self.made("Gather", table, positions, axis=0) if positions is not None else table
            if self.shape(table)[-1] != width // 2:
                rows = self.made("Slice", rows, self.integers(0), self.integers(width // 2), self.integers(-1))
            return self.made("Unsqueeze", self.made("Concat", rows, rows, axis=-1), self.integers(1))

        return self.once(("table", table, positions, width), make)

    def kept(self, new: _Heads, past: ir.Value | None, present: ir.Value | None) -> ir.Value:
        """All keys or values, [B, G, T, D]: the past and the new ones, in the place of the present."""
        whole = self.made("Concat", past, new.value, axis=2) if past is not None else new.value
        if present is not None:
            self.replace(present, whole)
        return whole

    def attend(
        self,
        inputs: _Inputs,
        query: _Heads,
        key: _Heads,
        value: _Heads,
        pasts: Sequence[ir.Value | None],
        masks: Sequence[ir.Value],
    ) -> None:
        """Put softmax(softcap(scale Q K^T) + masks) V in a node's place, and all keys and values in its presents'."""
        if (pasts[0] is None) != (pasts[1] is None):
            raise Unrecognized("keeps keys or values alone")
        if key.count != value.count or query.count % key.count or query.size != key.size:
            raise Unrecognized("has heads that do not fit together")
        dtype, flat = self.type_of(inputs.needed(0)), len(self.shape(inputs.needed(0))) == 3
        everything = []
        for new, past, place in zip((key, value), pasts, (1, 2), strict=True):
            whole = self.kept(new, past, inputs.output(place))
            if (shared := query.count // key.count) > 1:
                one = self.integers(1, 1, shared, 1, 1)
                copies = self.made("Expand", self.made("Unsqueeze", whole, self.integers(2)), one)
                whole = self.made("Reshape", copies, self.integers(0, query.count, -1, new.size))
            everything.append(whole)
        keys, values = everything
        scale = inputs.number("scale") or query.size**-0.5
        scores = self.made("MatMul", query.value, self.made("Transpose", keys, perm=[0, 1, 3, 2]))
        scores = self.made("Mul", scores, self.number(scale, dtype))
        if softcap := inputs.number("softcap"):
            limit = self.number(softcap, dtype)
            scores = self.made("Mul", self.made("Tanh", self.made("Div", scores, limit)), limit)
        for mask in masks:
            scores = self.made("Add", scores, mask)
        weights = self.made("Softmax", scores, axis=-1)
        if masks:  # a token that sees none gives zeros
            weights = self.made("Where", self.made("IsNaN", weights), self.number(0, dtype), weights)
        result = self.made("MatMul", weights, values)
        self.replace(inputs.node.outputs[0], self.together(result, query.count * value.size) if flat else result)

    def hidden(self, seen: ir.Value, dtype: ir.DataType) -> ir.Value:
        """What is added to the scores where a condition says which are seen."""
        numbers = self.number(0, dtype), self.number(-np.inf, dtype)
        return self.once(("hidden", seen, dtype), lambda: self.made("Where", seen, *numbers))

    def causal(self, before: ir.Value, rows: ir.Value, tokens: ir.Value, window: int = -1) -> ir.Value:
        """Which of T keys each of L rows sees, [L, T]: those up to its own, of which P come before the first row's.

        Args:
            before, rows, tokens: P, L and T, [1].
            window: how many of the last ones it sees; all of them where it is not positive.
        """
        sizes = before, self.made("Add", before, rows), tokens
        first, end, last = (self.made("Squeeze", each, self.integers(0)) for each in sizes)
        columns = self.made("Range", self.integer(0), last, self.integer(1))
        newest = self.made("Unsqueeze", self.made("Range", first, end, self.integer(1)), self.integers(1))
        seen = self.made("LessOrEqual", columns, newest)
        if window > 0:
            seen = self.made(
                "And", seen, self.made("Greater", columns, self.made("Sub", newest, self.integers(window)))
            )
        return seen

    def causal_by_length(self, query: _Heads, key: _Heads, past: ir.Value | None) -> ir.Value:
        """Which keys each new token sees, [L, T]; one for all layers whose queries and keys are as many."""
        values = [query.whole, key.whole, *([past] if past is not None else [])]
        lengths = tuple(tuple(shapes.shapes[value][-2] for value in values) for shapes in self.shapes)

        def make() -> ir.Value:
            rows, new, *kept = (self.made("Shape", value, start=-2, end=-1) for value in values)
            before = kept[0] if kept else self.integers(0)
            return self.causal(before, rows, self.made("Add", before, new))

        return self.once(("causal", lengths), make)


def _attention(write: _Writer, inputs: _Inputs) -> None:
    """`Attention` (ONNX operator specification, opset 23)."""
    inputs.refuse("has keys of different lengths, or gives its scores", inputs=[6], outputs=[3])
    query = write.heads(inputs.needed(0), inputs.integer("q_num_heads"))
    key, value = (write.heads(inputs.needed(place), inputs.integer("kv_num_heads")) for place in (1, 2))
    mask, past, dtype, masks = inputs[3], inputs[4], write.type_of(inputs.needed(0)), []
    if mask is not None:
        total = write.shape(key.whole)[-2] + (write.shape(past)[2] if past is not None else 0)
        if write.shape(mask)[-1:] != (total,):
            raise Unrecognized("has a mask of fewer keys")
        masks.append(write.hidden(mask, dtype) if write.type_of(mask) == ir.DataType.BOOL else mask)
    if inputs.integer("is_causal"):
        masks.append(write.hidden(write.causal_by_length(query, key, past), dtype))
    write.attend(inputs, query, key, value, (past, inputs[5]), masks)


def _multi_head_attention(write: _Writer, inputs: _Inputs) -> None:
    """`MultiHeadAttention` of onnxruntime."""
    inputs.refuse("has an indirect cache, or gives its scores", inputs=[8, 9], outputs=[3])
    if inputs[1] is None or inputs[2] is None:
        raise Unrecognized("has packed inputs")
    flat, count = [inputs.needed(place) for place in range(3)], inputs.integer("num_heads")
    if (bias := inputs[3]) is not None:
        widths = [write.shape(each)[-1] for each in flat]
        if any(len(write.shape(each)) != 3 for each in flat):
            raise Unrecognized("has a bias, and inputs of another layout")
        biases = write.split(bias, *widths)
        for place, (each, part) in enumerate(zip(flat, biases, strict=True)):
            flat[place] = write.made("Add", each, part)
            write.set_shape(flat[place], each)
    query, key, value = (write.heads(each, count) for each in flat)
    dtype, masks = write.type_of(inputs.needed(0)), []
    if (padding := inputs[4]) is not None:
        if len(write.shape(padding)) != 2:
            raise Unrecognized("has a mask of other dimensions than [batch, keys]")

        def seen() -> ir.Value:
            known = write.made("Cast", padding, to=ir.DataType.BOOL)
            return write.made("Unsqueeze", known, write.integers(1, 2))

        masks.append(write.hidden(write.once(("padding", padding), seen), dtype))
    masks += [added] if (added := inputs[5]) is not None else []
    if inputs.integer("unidirectional"):
        if any(shapes.shapes[query.whole][-2] != shapes.shapes[key.whole][-2] for shapes in write.shapes):
            raise Unrecognized("looks back on keys of another length")
        masks.append(write.hidden(write.causal_by_length(query, key, inputs[6]), dtype))
    write.attend(inputs, query, key, value, (inputs[6], inputs[7]), masks)


def _group_query_attention(write: _Writer, inputs: _Inputs) -> None:
    """`GroupQueryAttention` of onnxruntime."""
    inputs.refuse("has sinks or quantized keys", inputs=[11, 12, 13], smooth_softmax=0, kv_cache_bit_width=0)
    inputs.refuse("gives its scores, or normalizes or rotates in pairs", outputs=[3], qk_output=0, rotary_interleaved=0)
    count, groups, packed = inputs.integer("num_heads"), inputs.integer("kv_num_heads"), inputs.needed(0)
    mask = _mask_counted(inputs.needed(5))
    if inputs[3] is None or mask is None or len(write.shape(mask)) != 2:
        raise Unrecognized("counts its keys by something else than the sums of a mask of tokens")
    if inputs[1] is None or inputs[2] is None:
        size = write.shape(packed)[-1] // (count + 2 * groups)
        flat = write.split(packed, count * size, groups * size, groups * size)
    else:
        flat = [packed, inputs.needed(1), inputs.needed(2)]
    query, key, value = (write.heads(each, n) for each, n in zip(flat, (count, groups, groups), strict=True))
    lengths = tuple(shapes.shapes[packed][1] for shapes in write.shapes)
    if inputs.integer("do_rotary"):
        positions = inputs[9] or write.once(("positions", mask, lengths), lambda: _positions(write, mask, packed))
        width = 2 * write.shape(inputs.needed(7))[-1]
        cos, sin = (write.table(inputs.needed(place), positions, width) for place in (7, 8))
        query, key = (write.rotated(each, cos, sin, width) for each in (query, key))

    def seen() -> ir.Value:
        rows, tokens = (write.made("Shape", each, start=1, end=2) for each in (packed, mask))
        causal = write.causal(write.made("Sub", tokens, rows), rows, tokens, window)
        known = write.made("Unsqueeze", write.made("Cast", mask, to=ir.DataType.BOOL), write.integers(1))
        return write.made("Unsqueeze", write.made("And", known, causal), write.integers(1))

    window = inputs.integer("local_window_size", -1)
    masks = [write.hidden(write.once(("seen", mask, lengths, window), seen), write.type_of(packed))]
    masks += [added] if (added := inputs[10]) is not None else []
    write.attend(inputs, query, key, value, (inputs[3], inputs[4]), masks)


def _mask_counted(lengths: ir.Value) -> ir.Value | None:
    """The mask of tokens [B, T] that each text's number of keys is the sum of, less one."""
    value: ir.Value | None = lengths
    while value is not None and (node := value.producer()) is not None:
        if is_standard(node, ("ReduceSum",)):
            return _before_casts(node.inputs[0])
        if not is_standard(node, ("Cast", "Sub", "Add", "Squeeze", "Reshape", "Identity")):
            return None
        value = node.inputs[0]
    return None


def _before_casts(value: ir.Value | None) -> ir.Value | None:
    while value is not None and (node := value.producer()) is not None and is_standard(node, ("Cast", "Identity")):
        value = node.inputs[0]
    return value


def _positions(write: _Writer, mask: ir.Value, query: ir.Value) -> ir.Value:
    """How many tokens that the mask shows are before each new one, [B, L]."""
    rows, tokens = (write.made("Shape", each, start=1, end=2) for each in (query, mask))
    counted = write.made("CumSum", write.made("Cast", mask, to=ir.DataType.INT64), write.integers(1))
    before = write.made("Max", write.made("Sub", counted, write.integers(1)), write.integers(0))
    return write.made("Slice", before, write.made("Sub", tokens, rows), tokens, write.integers(1))


def _rotary_embedding(write: _Writer, inputs: _Inputs) -> None:
    """`RotaryEmbedding` (ONNX operator specification, opset 23)."""
    _rotate(write, inputs, inputs[3], inputs.needed(1), inputs.needed(2))


def _contrib_rotary_embedding(write: _Writer, inputs: _Inputs) -> None:
    """`RotaryEmbedding` of onnxruntime, whose positions may be the first token's alone."""
    positions, x = inputs.needed(1), inputs.needed(0)
    if write.shape(positions) == (1,):
        length = write.made("Squeeze", write.made("Shape", x, start=-2, end=-1), write.integers(0))
        counted = write.made("Range", write.integer(0), length, write.integer(1))
        positions = write.made("Unsqueeze", write.made("Add", counted, positions), write.integers(0))
    _rotate(write, inputs, positions, inputs.needed(2), inputs.needed(3))


def _rotate(write: _Writer, inputs: _Inputs, positions: ir.Value | None, cos: ir.Value, sin: ir.Value) -> None:
    inputs.refuse("rotates in pairs, or packed batches", interleaved=0, is_packed_batching=0)
    if inputs.number("scale", 1.0) != 1:
        raise Unrecognized("scales what it rotates")
    x, width = inputs.needed(0), inputs.integer("rotary_embedding_dim")
    shape = write.shape(x)
    count = inputs.integer("num_heads") or shape[-1] // (width or 2 * write.shape(cos)[-1])
    heads = write.heads(x, count)
    width = width or heads.size
    cos, sin = (write.table(each, positions, width) for each in (cos, sin))
    rotated = write.rotated(heads, cos, sin, width)
    result = rotated.value if len(shape) == 4 else write.together(rotated.value, shape[-1])
    write.apart[result] = rotated
    write.replace(inputs.node.outputs[0], result)


def _skip_norm(write: _Writer, inputs: _Inputs) -> None:
    """`SkipLayerNormalization` and `SkipSimplifiedLayerNormalization` of onnxruntime."""
    inputs.refuse("gives what is between", outputs=[1, 2])
    centered = inputs.node.op_type == "SkipLayerNormalization"
    skip, rows = inputs.needed(1), [inputs.needed(2)]
    if (bias := inputs[4 if centered else 3]) is not None:
        skip = write.made("Add", skip, bias)
    if centered and (shift := inputs[3]) is not None:
        rows.append(shift)
    total = write.made("Add", inputs.needed(0), skip)
    operator = "LayerNormalization" if centered else "SimplifiedLayerNormalization"
    norm = write.made(operator, total, *rows, axis=-1, epsilon=inputs.number("epsilon", 1e-12))
    write.replace(inputs.node.outputs[0], norm)
    if (sum_ := inputs.output(3)) is not None:
        write.replace(sum_, total)


_UNFOLDED: dict[tuple[str, str], Callable[[_Writer, _Inputs], None]] = {
    ("", "Attention"): _attention,
    ("", "RotaryEmbedding"): _rotary_embedding,
    (_CONTRIB, "GroupQueryAttention"): _group_query_attention,
    (_CONTRIB, "MultiHeadAttention"): _multi_head_attention,
    (_CONTRIB, "RotaryEmbedding"): _contrib_rotary_embedding,
    (_CONTRIB, "SkipLayerNormalization"): _skip_norm,
    (_CONTRIB, "SkipSimplifiedLayerNormalization"): _skip_norm,
}
