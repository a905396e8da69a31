"""Split a graph at the values that one part passes to the next, and make a model of each piece.

Only activations are passed on: values that depend on a site or on a convolution. Everything else (masks,
rotary tables, shapes of inputs) is cheap, and every piece computes what it needs of it from the graph's
inputs.
"""

from __future__ import annotations

__all__ = ["Segment", "extract_segment", "find_segments"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import onnx_ir as ir

from qxcompiler.graph.groups import by_value
from qxcompiler.graph.nodes import captured, is_standard, subgraphs
from qxcompiler.graph.sites import Site

# A value in use for more sites than this (an encoder's output, a skip connection) is no obstacle to a cut.
LONG_LIVED_SITES = 16
# The residual stream and what will be added to it.
ALIVE_AT_CUT = 2


@dataclass
class Segment:
    """A piece of the main graph between two cuts.

    Attributes:
        sites: its linear sites, at least one unless the graph has none.
        others: its sites of other kinds, of which nothing multiplies rows of features.
        inputs: values it takes from earlier segments; the graph's own inputs are not listed.
        outputs: values it computes for later segments; the graph's own outputs are not listed.
    """

    sites: list[Site] = field(default_factory=list)
    others: list[Site] = field(default_factory=list)
    inputs: list[ir.Value] = field(default_factory=list)
    outputs: list[ir.Value] = field(default_factory=list)


def find_segments(model: ir.Model, sites: Sequence[Site]) -> list[Segment]:
    """Split a normalized model's main graph into the smallest pieces that pass two values on to the next.

    A cut lies between two nodes where at most two activations are alive, not counting those that live for more
    than 16 sites; of neighbouring cuts the earliest, so that a norm goes with the layer it feeds. A transformer's
    block falls apart into query, key, value and what attention makes of them; attention output; gate and up; down.
    Sites that read the same activation stay together. Sites in subgraphs belong to no segment: their weights stay
    inside the pieces.

    Args:
        model: the model, whose nodes are in topological order.
        sites: what `find_sites` found in it.
    """
    flow = _Flow(model, sites)
    segments, home = [Segment()], dict[ir.Value, int]()
    remaining = sum(site.kind == "linear" for site in flow.sites)
    for position, node in enumerate(flow.nodes):
        for site in flow.sites_of.get(node, ()):
            (segments[-1].sites if site.kind == "linear" else segments[-1].others).append(site)
            remaining -= site.kind == "linear"
        home.update(dict.fromkeys(node.outputs, len(segments) - 1))
        if remaining and segments[-1].sites and flow.short_lived[position] <= ALIVE_AT_CUT:
            segments.append(Segment())
    for shape, source in flow.shapes.items():
        home[shape] = home[source]
    passed: dict[ir.Value, None] = {}
    for node in flow.nodes:
        index = home[node.outputs[0]]
        for value in flow.needs(node):
            if home[value] < index and value not in segments[index].inputs:
                segments[index].inputs.append(value)
                passed[value] = None
    for value in passed:
        segments[home[value]].outputs.append(value)
    return segments


def extract_segment(
    model: ir.Model,
    segment: Segment,
    outputs: Sequence[ir.Value],
    types: Mapping[str, ir.TypeProtocol] | None = None,
) -> ir.Model:
    """Make a model that computes some values of one segment; the graph that it comes from is left as it is.

    Its inputs, by name, as far as they are needed: the graph's inputs, `segment.inputs`, and the value
    `site.operand` of every site, to be fed with `site.operand_array(matrix)`.

    Args:
        model: the model that was segmented.
        segment: one of its segments.
        outputs: at least one value that a node of the segment computes.
        types: of inputs by name, for those that the model says nothing of.
    """
    sites = [*segment.others, *segment.sites]
    operands = {site.operand: None for site in sites}
    given = dict.fromkeys([*model.graph.inputs, *segment.inputs, *operands])
    graph = ir.convenience.extract(model.graph, list(given), list(outputs))
    for original, value in zip(given, list(graph.inputs), strict=True):
        if original in operands:
            graph.initializers.pop(value.name or "", None)
            value.const_value = None
        elif original not in model.graph.inputs:
            value.type = value.type or (types or {}).get(value.name or "")
            value.shape = None
    used = [value for value in graph.inputs if value.uses()]
    graph.inputs.clear()
    graph.inputs.extend(used)
    extracted = ir.Model(graph, ir_version=model.ir_version, functions=tuple(model.functions.values()))
    return ir.external_data.load_to_model(extracted)


class _Flow:
    """The part of the main graph that computes activations.

    Attributes:
        sites: those of the main graph.
        sites_of: the sites of a node; a recurrent layer has two.
        nodes: the nodes whose outputs are activations, in topological order.
        shapes: values that hold only the shape of an activation, and the activation.
        short_lived: for every position in `nodes`, how many short-lived activations cross from it to the
            next.
    """

    def __init__(self, model: ir.Model, sites: Sequence[Site]) -> None:
        self.sites = [site for site in sites if not site.in_subgraph]
        self.sites_of: dict[ir.Node, list[Site]] = {}
        for site in self.sites:
            self.sites_of.setdefault(site.node, []).append(site)
        self.shapes: dict[ir.Value, ir.Value] = {}
        self.nodes: list[ir.Node] = []
        self._dependent: set[ir.Value] = set()
        self._roots: dict[ir.Value, tuple[ir.Value, ...]] = {}
        bodies = {site.node.graph for site in sites if site.in_subgraph}
        for node in model.graph:
            inputs = _inputs(node)
            convolution = is_standard(node, ("Conv",))
            starts = node in self.sites_of or convolution or not bodies.isdisjoint(subgraphs(node))
            if starts or any(value in self._dependent for value in inputs):
                if is_standard(node, ("Shape", "Size")) and inputs:
                    self.shapes[node.outputs[0]] = inputs[0]
                    self._roots[node.outputs[0]] = (node.outputs[0],)
                    continue
                self.nodes.append(node)
                self._dependent.update(node.outputs)
            else:
                roots = tuple(dict.fromkeys(root for value in inputs for root in self._roots.get(value, ())))
                if roots:
                    self._roots.update(dict.fromkeys(node.outputs, roots))
        self.short_lived = self._count_short_lived()

    def needs(self, node: ir.Node) -> list[ir.Value]:
        """The activations, and shapes of activations, from which a node's inputs are computed."""
        return [
            root
            for value in _inputs(node)
            for root in ((value,) if value in self._dependent else self._roots.get(value, ()))
        ]

    def _count_short_lived(self) -> list[int]:
        last = {value: position for position, node in enumerate(self.nodes) for value in self.needs(node)}
        linear = [any(site.kind == "linear" for site in self.sites_of.get(node, ())) for node in self.nodes]
        sites_until = list(accumulate(linear))
        change = [0] * (len(self.nodes) + 1)

        def live(born: int, died: int, count: int) -> None:
            if sites_until[died] - sites_until[born] <= LONG_LIVED_SITES:
                change[born] += count
                change[died] -= count

        for born, node in enumerate(self.nodes):
            for value in node.outputs:
                live(born, last.get(value, born), 1)
        position_of = {node: position for position, node in enumerate(self.nodes)}
        for value, sites in by_value(self.sites).items():
            if not value.is_graph_input():  # no cut between sites that share an input
                positions = [position_of[site.node] for site in sites]
                live(min(positions), max(positions), ALIVE_AT_CUT + 1)
        return list(accumulate(change))


def _inputs(node: ir.Node) -> list[ir.Value]:
    return [value for value in (*node.inputs, *captured(node)) if value is not None]
