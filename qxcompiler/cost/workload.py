"""What a model computes in one phase, in numbers alone: its products, and the values that everything else moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import onnx_ir as ir

from qxcompiler.cost.shapes import Shape, Shapes, infer, is_random
from qxcompiler.dialects.reading import quantized_node
from qxcompiler.errors import ModelError, QxcError
from qxcompiler.formats import Scheme
from qxcompiler.graph import Site
from qxcompiler.runtime_ops.attention import ATTENTION_TYPES, AttentionType
from qxcompiler.runtime_ops.norm import NORM_TYPES
from qxcompiler.runtime_ops.operators import HADAMARD, SCHEME, operator_of
from qxcompiler_runtime.caches import SHARED_CACHE, is_past, is_past_size, is_present

__all__ = ["Item", "Phase", "Product", "Workload", "value_shapes", "workload"]


@dataclass(frozen=True)
class Phase:
    """One run of a model.

    Attributes:
        name: for people.
        rows: how many tokens (or frames) are computed.
        past: how many a language model has computed before, and keeps keys and values of.
        batch: how many sequences, or images.
    """

    name: str
    rows: int
    past: int = 0
    batch: int = 1

    @classmethod
    def decode(cls, context: int) -> Phase:
        """One token after so many others."""
        return cls(f"decode at context {context}", 1, context)

    @classmethod
    def prefill(cls, length: int) -> Phase:
        """A prompt."""
        return cls(f"prefill of {length}", length)

    @classmethod
    def encoder(cls, length: int = 1, batch: int = 1) -> Phase:
        """One pass over whole inputs."""
        return cls(f"pass over {length}" if length > 1 else "pass", length, batch=batch)

    def size_of(self, symbol: str | None, axis: int) -> int | None:
        """What a free size of an input stands for, by its name or its place; None for one that is no phase's matter."""
        name = (symbol or "").lower()
        if "batch" in name or (not name and axis == 0):
            return self.batch
        if "+" in name or "total" in name:
            return self.past + self.rows
        if is_past_size(name):
            return self.past
        if any(word in name for word in ("seq", "length", "len", "token", "frame", "time")):
            return self.rows
        return None


@dataclass(frozen=True)
class Product:
    """Products [M, K] x [K, N], `copies` of them.

    Attributes:
        rows, out_features, in_features: M, N, K.
        copies: how many alike: heads, groups, steps.
        between: whether both operands are activations.
        cached: whether the second is read from where keys and values are kept.
        kept_bytes: what a number of the second takes there, where it is kept in a format of fewer bits.
    """

    rows: int
    out_features: int
    in_features: int
    copies: int = 1
    between: bool = False
    cached: bool = False
    kept_bytes: float | None = None

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.rows * self.out_features * self.in_features * self.copies


@dataclass(frozen=True)
class Item:
    """One node.

    Attributes:
        name: of the node; for a site, the site's.
        operator: what it is.
        is_site: whether its scheme is a plan's to choose.
        scheme: of a packed operator of a compiled model, whose inputs an operator of their own has rotated.
        products: that it computes.
        looked_up: rows that are read from a table [N, K] of embeddings, N and K; None for other nodes.
        read: values that it reads, but for the operands of products: activations, `cached` ones, `constant` ones.
        written: values that it writes.
        results: what the vector unit has to compute.
    """

    name: str
    operator: str
    is_site: bool = False
    scheme: Scheme | None = None
    products: tuple[Product, ...] = ()
    looked_up: tuple[int, int, int] | None = None
    read: int = 0
    read_cached: int = 0
    read_constant: int = 0
    written: int = 0
    written_cached: int = 0
    results: float = 0

    @property
    def kept_bytes(self) -> float | None:
        """What a value that is kept takes, in a format of fewer bits; None for any other."""
        return next((product.kept_bytes for product in self.products), None)


@dataclass(frozen=True)
class Workload:
    """A model in one phase.

    Attributes:
        phase: which.
        tokens: what a run gives; one of a decode, even where a model without a cache computes all others again.
        items: a node each, in the order of the graph, but for those that only rename values, or that follow from
            constants and shapes, which a runtime computes once.
        weights: out features and in features of every weight, with the site that names its scheme first, or its scheme.
        constants: values of all other constants.
        live: values of activations that are needed at once, at most.
        cached: values of keys and values that are kept, before and after, or once where both are the same memory.
        cached_bytes: of those in a format of fewer bits.
        unknown: nodes whose shapes could not be found, so that they are counted nowhere.
    """

    phase: Phase
    tokens: int
    items: tuple[Item, ...]
    weights: tuple[tuple[int, int, str | Scheme | None], ...]
    constants: int
    live: int
    cached: int
    cached_bytes: int
    unknown: tuple[str, ...] = field(default=())


_VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Size", "Constant", "Dropout"}
# How many elementary results one of an operator takes, about; one where nothing is said.
_RESULTS = {
    "Softmax": 5, "LogSoftmax": 5, "LayerNormalization": 6, "RMSNormalization": 4, "GroupNormalization": 6,
    "InstanceNormalization": 6, "BatchNormalization": 2, "Gelu": 8, "Erf": 6, "Exp": 4, "Log": 4, "Tanh": 6,
    "Sigmoid": 5, "Swish": 6, "Silu": 6, "Pow": 2, "Sqrt": 2, "Div": 2, "Sin": 6, "Cos": 6, "Mish": 8, "Softplus": 6,
    "SkipLayerNormalization": 7, "SkipSimplifiedLayerNormalization": 5, "SimplifiedLayerNormalization": 4,
    "RotaryEmbedding": 4, "FastGelu": 8, "BiasGelu": 9, "QuickGelu": 6, HADAMARD: 7,
    "RMSNorm": 4, "SkipRMSNorm": 5, "LayerNorm": 6, "SkipLayerNorm": 7,
}  # fmt: skip
_MOVES = {"Transpose", "Concat", "Slice", "Split", "Gather", "Expand", "Tile", "Pad", "GatherElements", "GatherND"}
_SAME_SHAPE = {
    "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization", "RotaryEmbedding",
    "FastGelu", "BiasGelu", "QuickGelu", "Gelu", "MultiHeadAttention",
}  # fmt: skip
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def workload(model: ir.Model, sites: Sequence[Site], phase: Phase, sizes: Mapping[str, int] | None = None) -> Workload:
    """What a model computes in a phase.

    Args:
        model: normalized; an original, or a compiled one.
        sites: its sites.
        phase: which binds sizes called after batches, sequences and what was computed before.
        sizes: other free sizes of its inputs, by their symbols; these go before the phase.

    Raises:
        ModelError: a free size has no number, or a value would be larger than any memory.
    """
    tokens = phase.rows * phase.batch
    if phase.past and not _keeps(model):  # everything is computed again for every token
        phase = Phase(phase.name, phase.past + phase.rows, 0, phase.batch)
    found = value_shapes(model, phase, sizes)
    fixed = _fixed(model, found)
    by_node = {site.node: site for site in sites if site.kind != "recurrent"}  # which is two products
    items, unknown = [], []
    for node in model.graph:
        if fixed.issuperset(node.outputs) or _is_view(node):
            continue
        item = _item(node, by_node.get(node), found, fixed)
        if item is None:
            unknown.append(node.name or node.op_type)
        else:
            items.append(item)
    unknown += [site.name for site in sites if site.in_subgraph]
    weights, constants = _weights(model, sites)
    live, kept = _live(model, found, fixed), {True: 0, False: 0}
    for value in _cache_of(model):
        kept[value.dtype == ir.DataType.UINT8] += _count(found[value])
    return Workload(phase, tokens, tuple(items), weights, constants, live, kept[False], kept[True], tuple(unknown))


def _is_view(node: ir.Node) -> bool:
    """Whether a node gives what it reads, under another shape, so that a runtime computes nothing."""
    if node.domain == "" and node.op_type == "Cast":  # exporters write some to the type that is there
        return node.inputs[0] is not None and node.inputs[0].dtype == node.outputs[0].dtype is not None
    return node.domain == "" and node.op_type in _VIEWS


def _cache_of(model: ir.Model) -> list[ir.Value]:
    """Keys and values that are in memory after a run."""
    presents = [value for value in model.graph.outputs if is_present(value.name or "")]
    if SHARED_CACHE in model.metadata_props:
        return presents
    return [*(value for value in model.graph.inputs if is_past(value.name or "")), *presents]


def value_shapes(model: ir.Model, phase: Phase, sizes: Mapping[str, int] | None = None) -> Shapes:
    """The shapes of a model's values in a phase.

    Args:
        model, phase, sizes: as for `workload`; without a past, all tokens are rows.

    Raises:
        ModelError: a free size has no number, or a value would be larger than any memory.
    """
    if not _keeps(model):
        phase = Phase(phase.name, phase.past + phase.rows, 0, phase.batch)
    return infer(model, _Sizes(phase, sizes or {}), _own_shapes)


def _keeps(model: ir.Model) -> bool:
    return any(is_past(value.name or "") for value in model.graph.inputs)


def _fixed(model: ir.Model, found: Shapes) -> set[ir.Value]:
    """The values that are the same in every run: constants, what follows from them, and what follows from shapes."""
    fixed = set(model.graph.initializers.values()) | set(found.constants)
    for node in model.graph:
        inputs = [value for value in node.inputs if value is not None]
        if inputs and fixed.issuperset(inputs) and not is_random(node):
            fixed.update(node.outputs)
    return fixed


@dataclass(frozen=True)
class _Sizes:
    """What the free sizes of inputs stand for."""

    phase: Phase
    given: Mapping[str, int]

    def __call__(self, value: ir.Value, axis: int, symbol: str | None) -> int:
        if symbol is not None and symbol in self.given:
            return self.given[symbol]
        size = self.phase.size_of(symbol, axis)
        if size is not None:
            return size
        which = f"size {symbol!r}" if symbol else f"size without a name (axis {axis})"
        problem = f"has a {which} that the phase does not tell"
        raise ModelError(f"input '{value.name}'", problem, "name it with --size, such as --size height=224")


def _own_shapes(node: ir.Node, found: Shapes) -> list[Shape] | None:
    first = found[node.inputs[0]] if node.inputs else None
    if first is None:
        return None
    operator = operator_of(node)
    if operator is not None and operator.name == HADAMARD:
        return [first]
    if operator is not None and operator.name in _NORMS:
        return [first] * len(operator.outputs)
    if operator is not None and operator.name in _ATTENTION:
        past, mask = found[node.inputs[-2]], found[node.inputs[-1]]
        if not _ATTENTION[operator.name].cached:
            return [first]
        return [first, *[(*past[:2], max(past[2], mask[-1]), past[3])] * 2] if past and mask else None
    if operator is not None and operator.kind is not None:
        N, K = node.attributes.get_int("N", 0), node.attributes.get_int("K", 0)
        if operator.kind == "Gather":
            return [(*first, K)]
        return [(*first[:-1], N // 2 if operator.kind == "SwiGlu" else N)]
    if node.domain == "com.microsoft" and node.op_type in ("MatMulNBits", "MatMulBnb4"):
        return [(*first[:-1], node.attributes.get_int("N", 0))]
    if node.domain == "com.microsoft" and node.op_type == "GatherBlockQuantized":
        indices, bits = found[node.inputs[1]], node.attributes.get_int("bits", 4)
        return None if indices is None or not 0 < bits <= 8 else [(*indices, first[-1] * 8 // bits)]
    if node.domain == "com.microsoft" and node.op_type == "GroupQueryAttention":
        heads, groups = (node.attributes.get_int(name, 1) for name in ("num_heads", "kv_num_heads"))
        packed = len(node.inputs) < 2 or node.inputs[1] is None
        size = first[-1] // (heads + 2 * groups if packed else heads)
        past = found[node.inputs[3]] if len(node.inputs) > 3 else None
        length = first[1] + (past[2] if past else 0)
        return [(*first[:-1], heads * size), *[(first[0], groups, length, size)] * 2][: len(node.outputs)]
    # this one is in the standard's domain too, for onnxruntime alone
    if node.op_type == "SimplifiedLayerNormalization" or (
        node.domain == "com.microsoft" and node.op_type in _SAME_SHAPE
    ):
        return [first] * len(node.outputs)
    return None


def _count(shape: Shape | None) -> int:
    return 0 if shape is None else prod(shape)


def _item(node: ir.Node, site: Site | None, found: Shapes, fixed: set[ir.Value]) -> Item | None:
    """What a node computes; None where the shapes that it takes to say so are not known."""
    inputs = [value for value in node.inputs if value is not None]
    if any(found[value] is None for value in inputs) or found[node.outputs[0]] is None:
        return None
    name = node.name or node.op_type
    if site is not None:
        return _site_item(node, site.name, site.out_features, site.in_features, site.input, found, site.kind)
    operator = operator_of(node)
    if operator is not None and operator.kind is not None:
        N, K = node.attributes.get_int("N", 0), node.attributes.get_int("K", 0)
        x = node.inputs[0]
        item = _site_item(node, name, N, K, x, found, "embedding" if operator.kind == "Gather" else "linear")
        return None if item is None else _packed(item, node, operator.kind)
    if operator is not None and operator.name in _ATTENTION:
        return _attention_item(node, name, _ATTENTION[operator.name], found)
    if (weight := quantized_node(node)) is not None:
        N, K = weight.out_features, weight.in_features
        item = _site_item(node, name, N, K, weight.activation, found, weight.kind)
        return None if item is None else replace(item, is_site=weight.scheme is None, scheme=weight.scheme)
    out = _count(found[node.outputs[0]])
    products = _products(node, found, fixed)
    if products is None:
        return None
    operands = set(node.inputs[:2]) if products else set()
    others = [value for value in inputs if value not in operands]
    outputs = [value for value in node.outputs if value.name]
    written = sum(_count(found[value]) for value in outputs if not products or value is not node.outputs[0])
    kept = sum(_count(found[value]) for value in outputs if _is_kept(value))
    read = {"value": 0, "kept": 0, "constant": 0}
    for value in others:
        read["constant" if value in fixed else "kept" if _is_kept(value) else "value"] += _count(found[value])
    if node.op_type in _MOVES:  # what is left out is not read
        moved = sum(_count(found[value]) for value in node.outputs)
        read = {kind: min(count, moved) for kind, count in read.items()}
        results = 0.0
    else:
        largest = max([out, *(_count(found[value]) for value in inputs)])
        results = 0.0 if products and node.op_type not in _SCORES else float(largest * _RESULTS.get(node.op_type, 1))
    if node.op_type in _SCORES:
        results = float(_RESULTS["Softmax"] * sum(p.rows * p.out_features * p.copies for p in products[:1]))
    return Item(
        name,
        node.op_type,
        products=products,
        read=read["value"],
        read_cached=read["kept"],
        read_constant=read["constant"],
        written=written - (kept if not products else 0),
        written_cached=kept,
        results=results,
    )


def _attention_item(node: ir.Node, name: str, kind: AttentionType, found: Shapes) -> Item | None:
    """An attention of ours: heads that share keys read them once, and of a cache only new rows are written."""
    sizes = {each: found[value] or () for each, value in zip(kind.inputs, node.inputs, strict=True)}
    heads, groups = (node.attributes.get_int(each, 0) for each in ("num_heads", "kv_num_heads"))
    if heads < 1 or groups < 1:
        return None
    batch, rows, width = sizes["query"]
    size, length = width // heads, sizes["mask"][-1] if kind.cached else sizes["key"][1]
    kept_bytes = kind.cache_format.row_bytes(size) / size if kind.cache_format else None
    shared, copies = rows * heads // groups, batch * groups
    scores = Product(shared, length, size, copies, between=True, cached=True, kept_bytes=kept_bytes)
    products = scores, replace(scores, out_features=size, in_features=length)
    apart = {"query", "past_key", "past_value", *(() if kind.cached else ("key", "value"))}  # what products read
    return Item(
        name,
        node.op_type,
        products=products,
        read=sum(_count(shape) for each, shape in sizes.items() if each not in apart),
        written_cached=2 * rows * copies * size if kind.cached else 0,
        results=float(_RESULTS["Softmax"] * shared * length * copies),
    )


def _site_item(node: ir.Node, name: str, N: int, K: int, x: ir.Value | None, found: Shapes, kind: str) -> Item | None:
    count = _count(found[x])
    if kind == "embedding":
        looked_up = (count, N, K)
        return Item(name, node.op_type, True, looked_up=looked_up, written=count * K, results=count * K)
    if K < 1 or N < 1:
        return None
    products = _products(node, found, set()) if node.op_type == "Conv" else (Product(max(1, count // K), N, K),)
    return None if products is None else Item(name, node.op_type, True, products=products)


def _packed(item: Item, node: ir.Node, kind: str) -> Item:
    """An operator of a compiled model, whose scheme stands in its metadata."""
    try:
        scheme = _without_rotation(Scheme.parse(node.metadata_props.get(SCHEME, "")))
    except QxcError:
        scheme = None
    gated = item.products[0] if kind == "SwiGlu" else None
    results = item.results + (gated.rows * gated.out_features // 2 * _RESULTS["Silu"] if gated else 0)
    return Item(
        item.name, item.operator, scheme is None, scheme, item.products, item.looked_up, written=item.written,
        results=results,
    )  # fmt: skip


def _without_rotation(scheme: Scheme) -> Scheme:
    return Scheme(replace(scheme.format, rotated=False), scheme.activation)


_ATTENTION = {each.name: each for each in ATTENTION_TYPES}  # ours
_NORMS = {each.name for each in NORM_TYPES}
_SCORES = {"Attention", "MultiHeadAttention", "GroupQueryAttention"}


def _products(node: ir.Node, found: Shapes, fixed: set[ir.Value]) -> tuple[Product, ...] | None:
    """What a node that is no site multiplies: nothing, for most; None where it cannot be told."""
    shapes = [found[value] for value in node.inputs]
    x, w = (*shapes, None, None)[:2]
    if node.op_type in ("MatMul", "MatMulInteger", "Gemm") and x and w:
        between = node.inputs[0] not in fixed and node.inputs[1] not in fixed
        cached = _is_kept(node.inputs[1])
        y = found[node.outputs[0]] or ()
        K = x[0] if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0 else x[-1]
        N = y[-1] if len(w) > 1 and y else 1
        M = x[-2] if len(x) > 1 else 1
        if len(w) <= 2:  # one matrix for all
            return (Product(max(1, _count(y) // max(N, 1)), N, K, 1, between, cached),)
        return (Product(M, N, K, max(1, _count(y) // max(M * N, 1)), between, cached),)
    if node.op_type in ("Conv", "ConvInteger", "ConvTranspose") and x and w:
        y = found[node.outputs[0]] or ()
        group = max(1, node.attributes.get_int("group", 1))
        if node.op_type == "ConvTranspose":
            return (Product(x[0] * prod(x[2:]), w[1] * prod(w[2:]), w[0] // group, group),)
        return (Product(y[0] * prod(y[2:]), y[1] // group, w[1] * prod(w[2:]), group),)
    if node.op_type in _GATES and x and w:
        directions, _, K = w
        hidden = node.attributes.get_int("hidden_size", w[1] // _GATES[node.op_type])
        gates = _GATES[node.op_type] * hidden
        steps, batch = x[0], x[1]
        return Product(steps * batch, gates, K, directions), Product(batch, gates, hidden, directions * steps)
    if node.domain == "com.microsoft" and node.op_type in ("MatMulNBits", "MatMulBnb4") and x:
        N, K = node.attributes.get_int("N", 0), node.attributes.get_int("K", 0)
        return None if N < 1 or K < 1 else (Product(max(1, _count(x) // K), N, K),)
    if node.op_type in _SCORES:
        return _attention(node, shapes)
    return ()


def _attention(node: ir.Node, shapes: Sequence[Shape | None]) -> tuple[Product, ...] | None:
    """Scores, and the values they weigh: a product each for every head."""
    q, k = (*shapes, None, None)[:2]
    if q is None or k is None or len(q) not in (3, 4):
        return None
    names = ("q_num_heads", "num_heads")
    if len(q) == 4:
        batch, heads, rows, size = q
        length = k[2]
    else:
        batch, rows, width = q
        heads = next((count for name in names if (count := node.attributes.get_int(name, 0))), 0)
        if heads < 1:
            return None
        size, length = width // heads, k[1]
    past = next((shape for shape in shapes[3:] if shape is not None and len(shape) == 4 and shape[-1] == size), None)
    length += past[2] if past and node.op_type != "Attention" else 0
    if node.op_type == "Attention" and len(shapes) > 4 and (kept := shapes[4]) is not None:
        length += kept[2]
    return _scores_and_values(rows, length, size, batch * heads)


def _scores_and_values(rows: int, length: int, size: int, heads: int) -> tuple[Product, ...]:
    scores = Product(rows, length, size, heads, between=True, cached=True)
    return scores, Product(rows, size, length, heads, between=True, cached=True)


def _is_kept(value: ir.Value | None) -> bool:
    """Whether a value is one that a model keeps."""
    if value is None or not value.name:
        return False
    return (value.is_graph_input() and is_past(value.name)) or (value.is_graph_output() and is_present(value.name))


def _weights(model: ir.Model, sites: Sequence[Site]) -> tuple[tuple[tuple[int, int, str | Scheme | None], ...], int]:
    """Every weight once, and the values of all other constants."""
    weights: dict[ir.Value, tuple[int, int, str | Scheme | None]] = {}
    packed: set[ir.Value] = set()
    for site in sites:
        weights.setdefault(site.weight.value, (site.out_features, site.in_features, site.name))
    for node in model.graph.all_nodes():
        if (weight := quantized_node(node)) is not None:
            weights.setdefault(weight.tensors[0], (weight.out_features, weight.in_features, weight.scheme))
            packed.update(weight.tensors)
        operator = operator_of(node)
        if operator is None or operator.kind is None or len(node.inputs) < 3 or node.inputs[1] is None:
            continue
        try:
            scheme: Scheme | None = Scheme.parse(node.metadata_props.get(SCHEME, ""))
        except QxcError:
            scheme = None
        N, K = node.attributes.get_int("N", 0), node.attributes.get_int("K", 0)
        weights.setdefault(node.inputs[1], (N, K, scheme))
        tensors = node.inputs[1:] if operator.kind == "Gather" else node.inputs[1:-1]  # a bias is no part of it
        packed.update(value for value in tensors if value is not None)
    rest = 0
    for value in model.graph.initializers.values():
        if value not in weights and value not in packed and value.const_value is not None:
            rest += prod(int(size) for size in value.const_value.shape.numpy())
    return tuple(weights.values()), rest


def _live(model: ir.Model, found: Shapes, fixed: set[ir.Value]) -> int:
    """The most values that are needed at once: made, and still to be read. Views take nothing of their own."""
    nodes = list(model.graph)
    owner: dict[ir.Value, ir.Value] = {}
    last: dict[ir.Value, int] = {}
    for index, node in enumerate(nodes):
        first = node.inputs[0] if node.inputs else None
        for value in node.outputs:
            views = _is_view(node) and first is not None
            owner[value] = owner.get(first, first) if views and first is not None else value
        for read in node.inputs:
            if read is not None:
                last[owner.get(read, read)] = index
    for output in model.graph.outputs:
        last[owner.get(output, output)] = len(nodes)
    ends: dict[int, int] = {}
    now = most = 0
    for value in model.graph.inputs:
        if not _is_kept(value):
            size = _count(found[value])
            now += size
            ends[last.get(value, 0)] = ends.get(last.get(value, 0), 0) + size
    for index, node in enumerate(nodes):
        for value in node.outputs:
            if owner[value] is value and value not in fixed and not _is_kept(value):
                size = _count(found[value])
                now += size
                ends[last.get(value, index)] = ends.get(last.get(value, index), 0) + size
        most = max(most, now)
        now -= ends.pop(index, 0)
    return most
