"""Groups of sites that read the same value: they share a segment, statistics, and where they can an operator."""

from __future__ import annotations

__all__ = ["Input", "by_operator", "by_value", "inputs_of_weights"]

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable
from typing import NamedTuple

import onnx_ir as ir

from qxcompiler.graph.sites import Site, Weight


class Input(NamedTuple):
    """What a weight is multiplied with: an activation, and its axis that holds the features."""

    value: ir.Value
    axis: int


def by_value(sites: Iterable[Site]) -> dict[ir.Value, list[Site]]:
    """The sites that read each value, along whatever axis."""
    groups: defaultdict[ir.Value, list[Site]] = defaultdict(list)
    for site in sites:
        groups[site.input].append(site)
    return dict(groups)


def inputs_of_weights(sites: Iterable[Site]) -> dict[Weight, frozenset[Input]]:
    """All that each weight is multiplied with. Weights of equal inputs have equal statistics."""
    inputs: defaultdict[Weight, set[Input]] = defaultdict(set)
    for site in sites:
        inputs[site.weight].add(Input(site.input, site.activation_axis))
    return {weight: frozenset(found) for weight, found in inputs.items()}


def by_operator(sites: Collection[Site]) -> list[list[Site]]:
    """The linear sites that one operator can compute, if their schemes are the same and their rows fill whole tiles.

    They read one input in one graph, and are of one block: the results of several blocks would all be held at once. A
    site whose weight another one reads stays alone, so that no byte is stored twice.
    """
    readers = Counter(site.weight for site in sites)
    groups: defaultdict[Hashable, list[Site]] = defaultdict(list)
    for site in sites:
        if site.kind == "linear":
            alone = site if readers[site.weight] > 1 else None
            groups[site.input, site.activation_axis, site.node.graph, site.block, alone].append(site)
    return list(groups.values())
