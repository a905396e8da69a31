"""Groups of sites that read the same numbers: they share a segment, statistics, and where they can an operator."""

from __future__ import annotations

__all__ = ["Input", "by_input", "by_operator", "inputs_of_weights"]

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable
from typing import NamedTuple

import onnx_ir as ir

from qxcompiler.graph.sites import Site, Weight


class Input(NamedTuple):
    """What a site reads.

    Attributes:
        value: the activation X.
        axis: its axis that holds the features.
    """

    value: ir.Value
    axis: int


def by_input(sites: Iterable[Site]) -> dict[Input, list[Site]]:
    """The sites that read each input, in their order."""
    groups: defaultdict[Input, list[Site]] = defaultdict(list)
    for site in sites:
        groups[Input(site.input, site.activation_axis)].append(site)
    return dict(groups)


def inputs_of_weights(sites: Iterable[Site]) -> dict[Weight, frozenset[Input]]:
    """All inputs that each weight is multiplied with. Weights of equal inputs have equal statistics."""
    found: defaultdict[Weight, list[Input]] = defaultdict(list)
    for each, readers in by_input(sites).items():
        for site in readers:
            found[site.weight].append(each)
    return {weight: frozenset(inputs) for weight, inputs in found.items()}


def by_operator(sites: Collection[Site]) -> list[list[Site]]:
    """The linear sites that one operator can compute, if their schemes are the same.

    They read one input in one graph, and are of one block: the results of several blocks would all be held at once. A
    site whose weight another one reads stays alone, so that no byte is stored twice.
    """
    readers = Counter(site.weight for site in sites)
    groups: defaultdict[Hashable, list[Site]] = defaultdict(list)
    for each, reading in by_input(site for site in sites if site.kind == "linear").items():
        for site in reading:
            alone = site if readers[site.weight] > 1 else None
            groups[each, site.node.graph, site.block, alone].append(site)
    return list(groups.values())
