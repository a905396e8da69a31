"""Follow data through a graph: from which sites it comes, and which it reaches.

Everything rests on one relation: the *sources* of a value, the sites that its data comes from without passing
another site. A residual addition, where data of different sources meets, starts a new stream: it is a source
itself, so that nothing is traced through it into earlier layers. Shapes, indices and conditions are not data.
"""

from __future__ import annotations

__all__ = ["Trace"]

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import onnx_ir as ir

from qxcompiler.graph.nodes import bodies, data_inputs, is_standard
from qxcompiler.graph.sites import Site

Sources: TypeAlias = frozenset[Site | ir.Node]

_SKIP_NORMS = {"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}


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
