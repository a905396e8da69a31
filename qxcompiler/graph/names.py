"""Names: one of its own for every value and node of a model, those in bodies included.

ONNX lets the bodies of `If`, `Loop` and `Scan` repeat each other's names, and nodes go without one. Whatever moves a
value from one graph into another, or adds one, would make the wrong one meant.
"""

from __future__ import annotations

__all__ = ["Names", "make_names_unique"]

from collections import defaultdict
from collections.abc import Iterator

import onnx_ir as ir


class Names:
    """The names in use in a model, of values and nodes, and new ones beside them."""

    def __init__(self, model: ir.Model) -> None:
        self._used = {value.name for value in _values(model)} | {node.name for node in model.graph.all_nodes()}
        self._counts: defaultdict[str, int] = defaultdict(lambda: 1)

    def new(self, preferred: str) -> str:
        """A name that nothing has: the preferred one, with a number after it where that is taken."""
        name = preferred
        while name in self._used:
            self._counts[preferred] += 1
            name = f"{preferred}_{self._counts[preferred]}"
        self._used.add(name)
        return name


def make_names_unique(model: ir.Model) -> None:
    """Rename values and nodes, in place, until no two values have one name, and no two nodes.

    The main graph's inputs and outputs keep theirs, then its initializers; an output that a node leaves out stays
    nameless. Model-local functions are left alone: they are scopes of their own.
    """
    names = Names(model)
    kept = set[str]()
    for value in dict.fromkeys(_values(model)):
        if not value.name and not value.uses() and not value.is_graph_output() and value.producer() is not None:
            continue
        if not value.name or value.name in kept:
            value.name = names.new(value.name or "value")
        kept.add(value.name)
    kept.clear()
    for node in model.graph.all_nodes():
        if not node.name or node.name in kept:
            node.name = names.new(node.name or f"{node.op_type}_{node.outputs[0].name}")
        kept.add(node.name)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """All values of the main graph and of bodies; some come more than once."""
    graphs = [model.graph, *model.graph.subgraphs()]
    for graph in graphs:
        yield from graph.inputs
        yield from graph.outputs
        yield from graph.initializers.values()
    for graph in graphs:
        for node in graph:
            yield from node.outputs
