"""Follow data through a graph: from which sites it comes, and which it reaches.

Everything rests on one relation: the *sources* of a value, the sites that its data comes from without passing
another site. A residual addition, where data of different sources meets, starts a new stream: it is a source
itself, so that nothing is traced through it into earlier layers. Shapes, indices and conditions are not data.
"""

from __future__ import annotations

__all__ = ["Trace", "bodies", "captured", "data_inputs", "is_standard", "subgraphs"]

from collections import deque
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from qxcompiler.graph.sites import Site

    Sources = frozenset[Site | ir.Node]

# Operators whose outputs hold none of their inputs' numbers, and those that pass on those of some inputs.
_SHAPES = {"Shape", "Size", "ConstantOfShape", "Range", "NonZero", "ArgMax", "ArgMin"}
_CONDITIONS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "Xor"}
_NO_DATA = _SHAPES | _CONDITIONS | {"IsNaN", "IsInf"}
_MOVES = {
    "Reshape",
    "Expand",
    "Unsqueeze",
    "Squeeze",
    "Slice",
    "Split",
    "Pad",
    "Tile",
    "Trilu",
    "Resize",
    "TopK",
}
_GATHERS = {"Gather", "GatherND", "GatherElements"}
_REDUCTIONS = {
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "CumSum",
}
_DATA_INPUTS: dict[str, Sequence[int]] = {
    **dict.fromkeys(_MOVES | _GATHERS | _REDUCTIONS | {"Dropout", "Clip"}, (0,)),
    "Where": (1, 2),
    "ScatterND": (0, 2),
    "ScatterElements": (0, 2),
}
_SKIP_NORMS = {"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs, and values captured by a node's bodies, whose numbers reach the outputs."""
    if is_standard(node, _NO_DATA):
        return []
    positions = _DATA_INPUTS.get(node.op_type) if is_standard(node, _DATA_INPUTS) else None
    positions = range(len(node.inputs)) if positions is None else positions
    values = [node.inputs[i] for i in positions if i < len(node.inputs)]
    return [value for value in (*values, *captured(node)) if value is not None]


def is_standard(node: ir.Node, operators: Container[str]) -> bool:
    """Whether a node is one of these operators of the standard, and not of another domain."""
    return node.domain == "" and node.op_type in operators


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The bodies of an `If`, `Loop` or `Scan`."""
    graphs: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs.extend(attribute.as_graphs())
    return graphs


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The bodies of a node and everything nested in them."""
    return [inner for body in bodies(node) for inner in (body, *body.subgraphs())]


def captured(node: ir.Node) -> list[ir.Value]:
    """The values of enclosing graphs that the bodies of a node read."""
    graphs = subgraphs(node)
    read = (value for graph in graphs for inner in graph for value in inner.inputs)
    values = dict.fromkeys((*read, *(value for graph in graphs for value in graph.outputs)))
    return [value for value in values if value is not None and value.graph not in graphs]


class Trace:
    """The sources of every value, found in one walk in topological order.

    Attributes:
        sites: the sites given.
        site_of: the site of a node.
        nodes: all nodes, those of bodies included, in topological order.
        joins: the residual additions.
        outputs: the graph outputs.
    """

    def __init__(self, model: ir.Model, sites: Sequence[Site]) -> None:
        self.sites = sites
        self.site_of = {site.node: site for site in sites}
        self.nodes = list(model.graph.all_nodes())
        self.outputs = set(model.graph.outputs)
        self.joins: set[ir.Node] = set()
        self._sources: dict[ir.Value, Sources] = {}
        self._visit(model.graph)

    def sources(self, value: ir.Value | None) -> Sources:
        """The sites and residual additions that a value's data comes from."""
        return self._sources.get(value, frozenset()) if value is not None else frozenset()

    def linear_sources(self, value: ir.Value | None) -> list[Site]:
        """The linear sites that a value comes from; none if any of it comes from elsewhere."""
        sources = self.sources(value)
        if any(isinstance(source, ir.Node) or source.kind != "linear" for source in sources):
            return []
        return [site for site in self.sites if site in sources]

    def _visit(self, graph: ir.Graph) -> None:
        for node in graph:
            found: Sources = frozenset()
            for body in bodies(node):
                self._visit(body)
                found = found.union(*(self.sources(value) for value in body.outputs))
            parts = [self.sources(value) for value in data_inputs(node)]
            if node in self.site_of:
                found = frozenset({self.site_of[node]})
            elif self._is_join(node):
                self.joins.add(node)
                found = frozenset({node})
            else:
                found = _merge([found, *parts])
            if found:
                for output in node.outputs:
                    self._sources[output] = found

    def _is_join(self, node: ir.Node) -> bool:
        if is_standard(node, ("Add", "Sum")) or (node.domain == "com.microsoft" and node.op_type in _SKIP_NORMS):
            parts = {self.sources(value) for value in node.inputs[:2]} - {frozenset()}
            return len(parts) > 1
        return False

    def before(self, value: ir.Value | None, *, through_joins: bool = False) -> Iterator[ir.Node]:
        """The nodes that a value's data passed since its sources, nearest first."""
        queue, seen = deque([value]), set[ir.Value | None]()
        while queue:
            value = queue.popleft()
            if value is None or value in seen:
                continue
            seen.add(value)
            node = value.producer()
            if node is None or node in self.site_of or not self.sources(value):
                continue
            if through_joins or node not in self.joins:
                yield node
                queue.extend(data_inputs(node))

    def after(self, value: ir.Value) -> Iterator[ir.Node]:
        """The nodes that a value's data reaches, up to the next sites and joins, nearest first."""
        queue, seen = deque([value]), set[ir.Node]()
        while queue:
            value = queue.popleft()
            for node in value.consumers():
                if node in seen or value not in data_inputs(node):
                    continue
                seen.add(node)
                yield node
                if node not in self.site_of and node not in self.joins:
                    queue.extend(node.outputs)

    def reaches_output(self, site: Site) -> bool:
        """Whether a site's data reaches a graph output before any residual addition, and no further site."""
        passed = [site.node, *self.after(site.node.outputs[0])]
        if any(node in self.site_of for node in passed[1:]):
            return False
        return any(output in self.outputs for node in passed if node not in self.joins for output in node.outputs)


def _merge(parts: list[Sources]) -> Sources:
    parts = [part for part in parts if part]
    return parts[0] if len(set(parts)) == 1 else frozenset().union(*parts)
