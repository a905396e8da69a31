"""Name the role of every site from what meets where in the graph, never from names.

What is traced, and where a trace ends, is told in `qxcompiler.graph.dataflow`.
"""

from __future__ import annotations

__all__ = ["assign_roles", "find_sites"]

from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qxcompiler.graph.dataflow import Trace
from qxcompiler.graph.nodes import is_standard
from qxcompiler.graph.sites import Site, locate_sites

_RECTIFIERS = {"Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Clip", "Elu", "Selu", "Celu"}
_SMOOTH_ACTIVATIONS = {"Gelu", "FastGelu", "QuickGelu", "BiasGelu", "Swish", "Silu", "Mish", "HardSwish"}
_ACTIVATION_PARTS = {"Sigmoid", "HardSigmoid", "Softplus", "Softsign", "Tanh", "Erf"}
_ACTIVATIONS = _RECTIFIERS | _SMOOTH_ACTIVATIONS | _ACTIVATION_PARTS
_SPLITS = {"Split", "Slice", "Gather"}
# Fused attention: (domain, operator); inputs 0, 1, 2 are query, key and value, or input 0 all three.
_FUSED_ATTENTION = {
    ("", "Attention"),
    ("com.microsoft", "Attention"),
    ("com.microsoft", "MultiHeadAttention"),
    ("com.microsoft", "GroupQueryAttention"),
    ("com.microsoft", "DecoderMaskedMultiHeadAttention"),
    ("com.microsoft", "PagedAttention"),
}


def find_sites(model: ir.Model, *, every_kind: bool = False) -> list[Site]:
    """List the sites of a normalized model in topological order, those in bodies after the body's node, with roles.

    Args:
        model: the model.
        every_kind: whether there are sites that no matrix product computes, and that nothing looks up; see `Site`.
    """
    sites = locate_sites(model, every_kind=every_kind)
    assign_roles(model, sites)
    return sites


def assign_roles(model: ir.Model, sites: Sequence[Site]) -> None:
    """Set `role` and `block` of every site.

    1. Embeddings are `embedding`.
    2. A softmax over the product of two activations, followed by a product with a third, is an attention
       product. What the three come from is `query`, `key` and `value`; a site that feeds several of them is
       `query_key_value`; the first sites after it are `attention_output`. Fused attention operators count as
       well.
    3. A site behind others that reaches a graph output through no other site and no residual addition is `head`,
       unless it has a role in attention (keys and values reach the cache).
    4. Where two sites of the same origin are multiplied, one of them through an activation, that is the
       `gate`, the other `up`, and the site they feed `down`. One site whose halves are multiplied is
       `gate_up`. A site that feeds another through an activation alone is `up`, and the other `down`.
    5. Everything else is `other`.

    Blocks are counted by attention products in topological order; one whose keys come from elsewhere than its
    queries (cross-attention) belongs to the block of the one before it. Other sites belong to the block of
    the attention before them. Embeddings, heads and what comes before the first attention have no block.
    Without any attention, every residual addition ends a block.
    """
    trace = Trace(model, sites)
    attentions = list(_attentions(trace))
    for site in sites:
        site.role, site.block = ("embedding" if site.kind == "embedding" else "other"), None
    for attention in attentions:
        attention.assign()
    for site in sites:
        if site.role == "other" and site.kind == "linear" and trace.sources(site.input) and trace.reaches_output(site):
            site.role = "head"
    for site in sites:
        if site.kind == "linear" and site.role in ("other", "head"):
            _assign_mlp(trace, site)
    _assign_blocks(trace, attentions)


@dataclass(eq=False)
class _Attention:
    query: list[Site]
    key: list[Site]
    value: list[Site]
    output: list[Site]

    def assign(self) -> None:
        for site in self.output:
            site.role = "attention_output"
        for role, sites in (("query", self.query), ("key", self.key), ("value", self.value)):
            for site in sites:
                fused = sum(site in group for group in (self.query, self.key, self.value)) > 1
                site.role = "query_key_value" if fused else role

    @property
    def sites(self) -> list[Site]:
        return [*self.query, *self.key, *self.value, *self.output]

    def is_cross(self, trace: Trace) -> bool:
        """Whether the keys are made of something else than the queries, or given by the caller."""
        made_of = [{trace.sources(site.input) for site in sites} for sites in (self.query, self.key)]
        return bool(self.query) and made_of[0] != made_of[1]


def _attentions(trace: Trace) -> Iterator[_Attention]:
    for node in trace.nodes:
        if (node.domain, node.op_type) in _FUSED_ATTENTION:
            packed = node.op_type != "Attention" or node.domain == ""
            query, key, value = ((*node.inputs, None, None)[i] if packed else None for i in range(3))
            if key is None:
                key = value = query
            product = node
        elif is_standard(node, ("Softmax",)) and node.inputs and node.inputs[0] is not None:
            # A position bias may be learned, so that adding it to the scores looks like a residual addition.
            passed = trace.before(node.inputs[0], through_joins=True)
            scores = next((n for n in passed if _is_product(trace, n)), None)
            if scores is None:
                continue
            products = [n for n in trace.after(node.outputs[0]) if _is_product(trace, n, need=1)]
            if not products:
                continue
            product = products[0]
            query, key = scores.inputs[:2]
            probabilities = {node.outputs[0], *(v for n in trace.after(node.outputs[0]) for v in n.outputs)}
            value = next((v for v in product.inputs if v not in probabilities), None)
        else:
            continue
        output = [trace.site_of[n] for n in trace.after(product.outputs[0]) if n in trace.site_of]
        yield _Attention(trace.linear_sources(query), trace.linear_sources(key), trace.linear_sources(value), output)


def _is_product(trace: Trace, node: ir.Node, need: int = 2) -> bool:
    """Whether a node multiplies matrices that are activations, rather than a weight."""
    if not is_standard(node, ("MatMul", "Einsum")) or node in trace.site_of or len(node.inputs) != 2:
        return False
    return all(value is not None and not value.is_initializer() for value in node.inputs) and need <= sum(
        bool(trace.sources(value)) for value in node.inputs
    )


def _assign_mlp(trace: Trace, down: Site) -> None:
    """Give `gate`, `up` and `down` to the sites that meet before `down`, if an activation is between."""
    found = trace.linear_sources(down.input)
    if any(site.role != "other" for site in found) or not 1 <= len(found) <= 2:
        return
    passed = list(trace.before(down.input))
    if len(found) == 2:
        product = next((n for n in passed if is_standard(n, ("Mul",)) and _separates(trace, n)), None)
        if product is None or trace.sources(found[0].input) != trace.sources(found[1].input):
            return
        activated = [_is_activated(trace, value) for value in product.inputs]
        if activated[0] == activated[1]:
            return
        gate, up = product.inputs if activated[0] else reversed(product.inputs)
        trace.linear_sources(gate)[0].role, trace.linear_sources(up)[0].role = "gate", "up"
    elif not any(node.op_type in _ACTIVATIONS for node in passed) or down.role == "head":
        return
    else:
        halves = any(is_standard(node, ("Mul",)) and _multiplies_halves(trace, node) for node in passed)
        found[0].role = "gate_up" if halves else "up"
    if down.role == "other":
        down.role = "down"


def _separates(trace: Trace, product: ir.Node) -> bool:
    return (
        all(len(trace.linear_sources(value)) == 1 for value in product.inputs)
        and len({trace.sources(value) for value in product.inputs}) == 2
    )


def _is_activated(trace: Trace, value: ir.Value | None) -> bool:
    return any(node.op_type in _ACTIVATIONS for node in trace.before(value))


def _multiplies_halves(trace: Trace, product: ir.Node) -> bool:
    """Whether one half of a site's output, through an activation, is multiplied with the other."""
    passed = [list(trace.before(value)) for value in product.inputs]
    activated = [any(node.op_type in _ACTIVATIONS for node in nodes) for nodes in passed]
    split = [any(is_standard(node, _SPLITS) for node in nodes) for nodes in passed]
    return all(split) and activated[0] != activated[1]


def _assign_blocks(trace: Trace, attentions: list[_Attention]) -> None:
    starts: dict[Site, int] = {}
    block = -1
    for attention in attentions:
        block += 1 if block < 0 or not attention.is_cross(trace) else 0
        for site in attention.sites:
            starts.setdefault(site, block)
    current: int | None = None
    position = {node: index for index, node in enumerate(trace.nodes)}
    ends = sorted(position[node] for node in trace.joins)
    for site in trace.sites:
        current = starts.get(site, current) if attentions else bisect(ends, position[site.node])
        site.block = None if site.role in ("embedding", "head") else current
