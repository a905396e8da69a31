"""Where a factor for each channel of a value can go instead, so that nothing but the value's readers sees it.

A value is followed back to the constants and weights that its numbers are products or sums of. On the way, an array
says of every number of a value which channel it becomes a part of: -1 is none. The array is read as numpy broadcasts,
from the last axis on, and has size 1 where an axis does not matter.
"""

from __future__ import annotations

__all__ = ["Channels", "Exchange", "find_exchange", "has_own_weights", "shape_of_channels"]

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qxcompiler.graph.nodes import is_standard
from qxcompiler.graph.readers import readers
from qxcompiler.graph.sites import FLOAT_TYPES, Site, Weight

Channels: TypeAlias = npt.NDArray[np.intp]

# A value further away than this from what it is made of stays as it is.
_LONGEST = 64
# Inputs of norms that their results are multiplied with, or that are added to them.
_NORMS = {
    ("", "LayerNormalization"): (1, 2),
    ("", "RMSNormalization"): (1,),
    ("", "SimplifiedLayerNormalization"): (1,),
    ("com.microsoft", "SkipLayerNormalization"): (2, 3),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): (2,),
}


@dataclass
class Exchange:
    """What to multiply, by the factors of which channels, so that a value's channels are multiplied by these.

    Attributes:
        constants: input `index` of `node`, an initializer that others may read too, by (node, index). The product may
            have a larger shape than the constant.
        rows: a site and its rows [N]. Nothing else reads its weight; its bias is among the constants.
        ties: channels that must have equal factors; -1 stands for 1.
    """

    constants: dict[tuple[ir.Node, int], Channels] = field(default_factory=dict)
    rows: dict[Site, Channels] = field(default_factory=dict)
    ties: list[tuple[Channels, Channels]] = field(default_factory=list)

    def classes(self, count: int) -> Channels:
        """Equal numbers for channels that must have equal factors, count + 1 of them: the last is that of 1."""
        classes = np.arange(count + 1)
        while True:
            before = classes.copy()
            for left, right in self.ties:
                smaller = np.minimum(classes[left], classes[right])
                np.minimum.at(classes, left, smaller)
                np.minimum.at(classes, right, smaller)
            if np.array_equal(before, classes):
                return classes

    def with_all_of(self, other: Exchange) -> Exchange:
        """Both, for a sum."""
        return Exchange(self.constants | other.constants, self.rows | other.rows, self.ties + other.ties)


def find_exchange(group: Sequence[Site], sites: Sequence[Site]) -> Exchange | None:
    """Where factors for the channels of the value X that a group of sites reads can go.

    Args:
        group: the sites that shall see the factors; `has_own_weights` holds for them.
        sites: those whose weights may be changed.

    Returns:
        None if something else reads X, or a part of it, or X is not made of constants and weights channel by channel.
    """
    X, channels = group[0].input, np.arange(group[0].in_features)
    if not _is_read_by(X, {site.node for site in group}):
        return None
    return _Search(sites).value(X, channels.reshape(shape_of_channels(group[0], len(channels))), 0)


def has_own_weights(group: Sequence[Site]) -> bool:
    """Whether the columns of the weights of sites that read one value can be changed together.

    The channels lie along the same axis for all, and nothing else reads the weights.
    """
    weights = {site.weight for site in group}
    nodes = {site.node for site in group}
    return (
        len({shape_of_channels(site, 2) for site in group}) == 1
        and len({weight.value for weight in weights}) == len(weights)
        and all(_is_constant_of(weight, nodes) for weight in weights)
    )


def shape_of_channels(site: Site, count: int) -> tuple[int, ...]:
    """The shape in which a number a channel, [count], is multiplied with a site's input or output."""
    axis = site.activation_axis
    return (count, *(1 for _ in range(-axis - 1 if axis < 0 else len(site.operand_shape) - axis - 1)))


def _is_read_by(value: ir.Value, nodes: Collection[ir.Node]) -> bool:
    """Whether these nodes alone read a value's numbers, each of them once; its shape may be read by any."""
    found = [use.node for use in value.uses() if not is_standard(use.node, ("Shape", "Size"))]
    return not value.is_graph_output() and set(found) <= set(nodes) and len(found) == len(set(found))


def _is_constant_of(weight: Weight, nodes: Collection[ir.Node]) -> bool:
    found, is_output = readers(weight.value)
    return not is_output and set(found) <= set(nodes)


class _Search:
    def __init__(self, sites: Sequence[Site]) -> None:
        self._site_of = {site.node: site for site in sites if site.kind == "linear"}

    def value(self, value: ir.Value, channels: Channels, depth: int) -> Exchange | None:
        """For a value whose readers are known to see the factors."""
        node, channels = value.producer(), _shrunk(channels)
        if node is None or depth > _LONGEST or not _fits(value, channels):
            return None
        if node in self._site_of:
            return self._layer(self._site_of[node], channels, depth)
        step = _STEPS.get((node.domain, node.op_type))
        return step(self, node, value, channels, depth + 1) if step else None

    def operand(
        self, node: ir.Node, index: int, channels: Channels, depth: int, *, grows: bool = False, spreads: bool = False
    ) -> Exchange | None:
        """For what a node reads.

        Args:
            grows: a constant may become as large as what it is added to.
            spreads: what is smaller than the channels is repeated by the node.
        """
        value = node.inputs[index]
        if value is None:
            return None
        if value.is_initializer() and not value.is_graph_input() and value.const_value is not None:
            shape = tuple(value.const_value.shape.numpy())
            is_float = value.const_value.dtype in FLOAT_TYPES
            if is_float and (grows or _broadcast(shape, channels.shape) == shape):
                return Exchange({(node, index): channels})
            return None
        if not _is_read_by(value, {node}):
            return None
        ties: list[tuple[Channels, Channels]] = []
        if spreads:
            channels, ties = _gathered(channels, value)
        found = self.value(value, channels, depth)
        return found and found.with_all_of(Exchange(ties=ties))

    def all_of(self, node: ir.Node, indices: Sequence[int], channels: Channels, depth: int) -> Exchange | None:
        """For several operands that are added up."""
        total = Exchange()
        for index in indices:
            found = self.operand(node, index, channels, depth, grows=True)
            if found is None:
                return None
            total = total.with_all_of(found)
        return total

    def _layer(self, site: Site, channels: Channels, depth: int) -> Exchange | None:
        has_channels = channels.shape == shape_of_channels(site, site.out_features)
        if not has_channels or not _is_constant_of(site.weight, {site.node}):
            return None
        rows = channels.reshape(-1)
        total = Exchange(rows={site: rows})
        if site.bias is None:
            return total
        bias = self.operand(site.node, 2, rows, depth, grows=True)
        return bias and total.with_all_of(bias)


# One step back: from a node's output, whose numbers belong to `channels`, to its inputs.


def _same(search: _Search, node: ir.Node, value: ir.Value, channels: Channels, depth: int) -> Exchange | None:
    return search.operand(node, 0, channels, depth)


def _cast(search: _Search, node: ir.Node, value: ir.Value, channels: Channels, depth: int) -> Exchange | None:
    is_float = ir.DataType(node.attributes.get_int("to", 0)) in FLOAT_TYPES
    return search.operand(node, 0, channels, depth) if is_float else None


def _spread(search: _Search, node: ir.Node, value: ir.Value, channels: Channels, depth: int) -> Exchange | None:
    return search.operand(node, 0, channels, depth, spreads=True)


def _product(search: _Search, node: ir.Node, value: ir.Value, channels: Channels, depth: int) -> Exchange | None:
    constant = [operand is not None and operand.is_initializer() for operand in node.inputs]
    for index in sorted(range(len(node.inputs)), key=lambda index: not constant[index]):
        if found := search.operand(node, index, channels, depth):
            return found
    return None


def _sum(search: _Search, node: ir.Node, value: ir.Value, channels: Channels, depth: int) -> Exchange | None:
    return search.all_of(node, range(len(node.inputs)), channels, depth)


def _norm(search: _Search, node: ir.Node, value: ir.Value, channels: Channels, depth: int) -> Exchange | None:
    scale, *others = _NORMS[node.domain, node.op_type]
    given = [scale, *(index for index in others if index < len(node.inputs) and node.inputs[index] is not None)]
    if value is not node.outputs[0] or not all(_has_channels(node.inputs[index], channels) for index in given):
        return None
    return search.all_of(node, given, channels, depth)


def _matmul(search: _Search, node: ir.Node, value: ir.Value, channels: Channels, depth: int) -> Exchange | None:
    """A sum over the rows of the right matrix, such as attention's values: none of its columns is mixed with others."""
    if min(len(_shape(operand)) for operand in node.inputs) < 2 or (channels.ndim > 1 and channels.shape[-2] != 1):
        return None
    return search.operand(node, 1, channels, depth, spreads=True)


def _transpose(search: _Search, node: ir.Node, value: ir.Value, channels: Channels, depth: int) -> Exchange | None:
    rank = len(_shape(value))
    perm = node.attributes.get_ints("perm", tuple(reversed(range(rank))))
    if sorted(perm) != list(range(rank)):
        return None
    return search.operand(node, 0, _of_rank(channels, rank).transpose(np.argsort(perm)), depth)


def _reshape(search: _Search, node: ir.Node, value: ir.Value, channels: Channels, depth: int) -> Exchange | None:
    """The same numbers in the same order: as many of the last axes as hold all that differs."""
    after, before = _shape(value)[-channels.ndim :], _shape(node.inputs[0])
    if 0 in after:
        return None
    flat = np.broadcast_to(channels, after).reshape(-1)
    for start in range(len(before)):
        if math.prod(before[start:]) == flat.size:
            return search.operand(node, 0, flat.reshape(before[start:]), depth)
    return None


def _split(search: _Search, node: ir.Node, value: ir.Value, channels: Channels, depth: int) -> Exchange | None:
    """The other parts have no factors."""
    rank = len(_shape(value))
    axis = node.attributes.get_int("axis", 0) % rank
    sizes = [size for output in node.outputs for size in _shape(output)[axis : axis + 1]]
    if len(sizes) != len(node.outputs) or 0 in sizes:
        return None
    index = node.outputs.index(value)
    channels = _of_rank(channels, rank)
    mine = np.broadcast_to(channels, (*channels.shape[:axis], sizes[index], *channels.shape[axis + 1 :]))
    widths = [(0, 0)] * rank
    widths[axis] = (sum(sizes[:index]), sum(sizes[index + 1 :]))
    return search.operand(node, 0, np.pad(mine, widths, constant_values=-1), depth)


_Step: TypeAlias = Callable[[_Search, ir.Node, ir.Value, Channels, int], Exchange | None]
_STEPS: dict[tuple[str, str], _Step] = {
    **{("", name): _same for name in ("Identity", "Relu", "LeakyRelu", "Div")},
    **{("", name): _sum for name in ("Add", "Sub")},
    **{("", name): _reshape for name in ("Reshape", "Flatten", "Squeeze", "Unsqueeze")},
    **dict.fromkeys(_NORMS, _norm),
    ("", "Cast"): _cast,
    ("", "Expand"): _spread,
    ("", "Mul"): _product,
    ("", "MatMul"): _matmul,
    ("", "Split"): _split,
    ("", "Transpose"): _transpose,
}


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    """The sizes of a value, 0 where one is not known."""
    sizes = () if value is None or value.shape is None else value.shape
    return tuple(size if isinstance(size, int) else 0 for size in sizes)


def _fits(value: ir.Value, channels: Channels) -> bool:
    """Whether a value is known to have every axis along which the channels differ."""
    sizes = _shape(value)[-channels.ndim :]
    return len(sizes) == channels.ndim and all(
        wanted in (1, size) for wanted, size in zip(channels.shape, sizes, strict=True)
    )


def _has_channels(value: ir.Value | None, channels: Channels) -> bool:
    constant = None if value is None else value.const_value
    return constant is not None and _broadcast(tuple(constant.shape.numpy()), channels.shape) == constant.shape.numpy()


def _broadcast(shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return np.broadcast_shapes(shape, other)
    except ValueError:
        return None


def _of_rank(channels: Channels, rank: int) -> Channels:
    return channels.reshape((1,) * (rank - channels.ndim) + channels.shape)


def _shrunk(channels: Channels) -> Channels:
    """Size 1 along every axis that does not matter, and no such axis in front."""
    for axis in range(channels.ndim):
        first = channels.take([0], axis)
        channels = first if (channels == first).all() else channels
    while channels.ndim > 1 and len(channels) == 1:
        channels = channels[0]
    return channels


def _gathered(channels: Channels, value: ir.Value) -> tuple[Channels, list[tuple[Channels, Channels]]]:
    """The channels of what a node repeats along the axes where it has size 1, or that it lacks; they share factors."""
    shape, ties = _shape(value), list[tuple[Channels, Channels]]()
    for axis in range(channels.ndim):
        place = len(shape) - channels.ndim + axis
        if channels.shape[axis] > 1 and (place < 0 or shape[place] == 1):
            first = channels.take([0], axis)
            ties.append((channels, np.broadcast_to(first, channels.shape)))
            channels = first
    return channels, ties
