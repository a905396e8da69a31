"""Make one packed operator of several that read the same input: what the fusing passes share."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import onnx_ir as ir

from qxcompiler.packing.tile16 import TILE_ROWS
from qxcompiler.passes.emission.writer import GROUP, ROLE
from qxcompiler.passes.rewriting import Additions
from qxcompiler.runtime_ops.operators import DOMAIN, SCHEME

__all__ = ["fused_node", "fusion_key", "is_packed_matmul", "out_features"]


def fusion_key(node: ir.Node) -> Hashable | None:
    """What is equal for nodes that one node can replace; None for a node that none can.

    Those are packed `MatMul` nodes of one group, alike in operator, attributes other than N, scheme, and codebook where
    it is one for the tensor. Inputs of other types and layouts than the operator takes are converted for each node.
    """
    if not is_packed_matmul(node):
        return None
    attributes = tuple((name, node.attributes[name].value) for name in sorted(node.attributes) if name != "N")
    tables = tuple(_data(value).tobytes() for value in _weight_inputs(node) if _is_per_tensor(value))
    return node.meta[GROUP], node.inputs[0], node.op_type, attributes, node.metadata_props[SCHEME], tables


def is_packed_matmul(node: ir.Node) -> bool:
    """Whether a node is a packed `MatMul` of this compilation, not one that the model brought along."""
    return node.meta.get(GROUP) is not None


def out_features(node: ir.Node) -> int:
    """N."""
    return node.attributes["N"].as_int()


def fused_node(
    nodes: Sequence[ir.Node], operator: str, role: str, additions: Additions, *, interleaved: bool = False
) -> ir.Node:
    """A node, in no graph yet, whose weight holds the tiles of all the given nodes' weights.

    Args:
        nodes: of equal `fusion_key`; N of all but the last is a multiple of 16.
        operator: the new node's operator.
        role: its role.
        additions: where its tensors go. They are put together when they are read.
        interleaved: a tile of each in turn, all of the same N, instead of one after the other.
    """
    weights = [
        values[0] if _is_per_tensor(values[0]) else _joined(values, additions, interleaved)
        for values in zip(*map(_weight_inputs, nodes), strict=True)
    ]
    attributes = {name: attribute.value for name, attribute in nodes[0].attributes.items()}
    attributes["N"] = sum(map(out_features, nodes))
    # a bias may serve several nodes, a weight serves one
    bias = _joined_bias(nodes, f"{weights[0].name}.bias", additions, interleaved)
    inputs = [nodes[0].inputs[0], *weights, bias]
    name = "+".join(node.name for node in nodes if node.name)
    fused = additions.node(operator, inputs, attributes, domain=DOMAIN, name=name)
    fused.metadata_props.update(nodes[0].metadata_props)
    fused.metadata_props[ROLE] = role
    return fused


def _weight_inputs(node: ir.Node) -> list[ir.Value]:
    """Those between A and the bias."""
    return [value for value in node.inputs[1:-1] if value is not None]


def _data(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def _is_per_tensor(value: ir.Value) -> bool:
    """Whether a weight's tensor is a codebook, which alone is int8, for all tiles instead of one a row."""
    assert value.shape is not None
    return value.dtype == ir.DataType.INT8 and value.shape[:2] == (1, 1)


def _in_order(tiles: Sequence[np.ndarray], interleaved: bool) -> np.ndarray:
    return np.stack(tiles, axis=1).reshape(-1, *tiles[0].shape[1:]) if interleaved else np.concatenate(tiles)


def _joined(values: Sequence[ir.Value], additions: Additions, interleaved: bool) -> ir.Value:
    tensors = [value.const_value for value in values if value.const_value is not None]
    shapes = [tensor.shape.numpy() for tensor in tensors]
    name = "+".join(str(value.name) for value in values)
    return additions.constant(
        ir.LazyTensor(
            lambda: ir.tensor(_in_order([tensor.numpy() for tensor in tensors], interleaved)),
            dtype=tensors[0].dtype,
            shape=ir.Shape([sum(shape[0] for shape in shapes), *shapes[0][1:]]),
            name=name,
        )
    )


def _joined_bias(nodes: Sequence[ir.Node], name: str, additions: Additions, interleaved: bool) -> ir.Value:
    """[N], or the one number that all of them share."""
    values = [value for node in nodes if (value := node.inputs[-1]) is not None]
    if len(set(values)) == 1 and values[0].shape == (1,):
        return values[0]
    tiles = []
    for node, value in zip(nodes, values, strict=True):
        N = out_features(node)
        rows = np.broadcast_to(_data(value), N)
        tiles.append(np.pad(rows, (0, -N % TILE_ROWS)).reshape(-1, TILE_ROWS))
    bias = _in_order(tiles, interleaved).reshape(-1)[: sum(map(out_features, nodes))]
    return additions.constant(ir.tensor(bias, name=name))
