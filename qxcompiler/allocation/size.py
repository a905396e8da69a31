"""What a compiled model's files take, before there are any: at most so many bytes."""

from __future__ import annotations

__all__ = ["size_of_rest", "size_of_weight", "write_size"]

import math
from collections.abc import Collection, Sequence

import onnx_ir as ir

from qxcompiler.allocation.plan import Plan, sites_by_weight
from qxcompiler.dialects import Dialect
from qxcompiler.formats import Format
from qxcompiler.graph import Site, Weight
from qxcompiler.graph.model_file import ALIGNMENT, EXTERNAL_FROM_BYTES, PAGE, PAGE_FROM_BYTES

# What a tensor is filled up with in the data file: to a page where it is large, perhaps with others as one.
_FILLED, _LARGE = 4 * ALIGNMENT, PAGE_FROM_BYTES // 2
# What the graph's description grows by, at most: for a packed weight, besides names; for the operators of a format.
_SITE, _BODIES = 1024, 16384
_TENSOR, _FIELD = 64, 8  # of a tensor, besides its name and data; of any part


def write_size(size: float) -> str:
    """As `--max-size` takes it, not rounded down."""
    if size < 10**6:
        return f"{math.ceil(size)}B"
    return f"{math.ceil(size / 10**4) / 100:.2f}MB"


def size_of_weight(dialect: Dialect, fmt: Format, weight: Weight) -> int:
    """What a packed weight takes in the data file, filled up to where the next tensor may start."""
    size = dialect.weight_bytes(fmt, weight)
    return size + (PAGE if size >= _LARGE else _FILLED)


def size_of_rest(
    model: ir.Model,
    sites: Sequence[Site],
    plan: Plan,
    chosen: Collection[Weight],
    formats: Collection[Format],
    dialect: Dialect,
) -> int:
    """What the files take besides the weights whose formats are chosen: other weights, and the graph itself.

    Args:
        model: normalized.
        sites: all of them.
        plan: says what becomes of the other weights.
        chosen: the weights that are not counted.
        formats: what they may be stored as.
        dialect: in which operators.
    """
    users = sites_by_weight(sites)
    packed = {weight: scheme for weight in users if (scheme := plan[users[weight][0].name])}
    size = sum(
        size_of_weight(dialect, scheme.format, weight) for weight, scheme in packed.items() if weight not in chosen
    )
    replaced = {weight.value for weight in packed}
    for graph in model.graphs():
        for value in graph.initializers.values():
            size += 2 * len((value.name or "").encode()) + _TENSOR
            if value not in replaced and value.const_value is not None:
                nbytes = value.const_value.nbytes
                size += nbytes + (PAGE if nbytes >= _LARGE else _FILLED if nbytes >= EXTERNAL_FROM_BYTES else 0)
    size += sum(map(_description, model.graph.all_nodes()))
    for site in sites:
        if scheme := plan[site.name]:
            size += _SITE + 8 * len(site.name.encode())
            if scheme.activation == "a8":  # factors that smoothing may leave
                size += 4 * site.in_features + _FILLED
    held = {*formats, *(scheme.format for scheme in packed.values())}
    return size + (_BODIES * len(held) if dialect.library else 0)


def _description(node: ir.Node) -> int:
    """A node and its outputs' types, in bytes; the nodes of its subgraphs come by themselves."""
    size = int(sum(ir.serde.serialize_value(value).ByteSize() + _FIELD for value in node.outputs))
    if any(each.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for each in node.attributes.values()):
        names = [node.name, *(value.name for value in (*node.inputs, *node.outputs) if value)]
        return size + _TENSOR + sum(len((name or "").encode()) + _FIELD for name in names)
    return size + int(ir.serde.serialize_node(node).ByteSize()) + _FIELD
