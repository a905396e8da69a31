"""Compute all linear layers of a block that read the same value in one packed operator."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import onnx_ir as ir
import torch

from qxcompiler.graph.nodes import replace_value
from qxcompiler.packing.tile16 import TILE_ROWS
from qxcompiler.passes.emission.writer import ROLE
from qxcompiler.passes.packed_nodes import fused_node, fusion_key, out_features
from qxcompiler.passes.rewriting import Additions

__all__ = ["FuseSharedInput"]

_FUSED_ROLES = {"query_key_value": {"query", "key", "value"}, "gate_up": {"gate", "up"}}


class FuseSharedInput(ir.passes.InPlacePass):
    """Compute all linear layers of a block that read the same value in one packed operator: query, key and value.

    - Packed `MatMul` nodes of one graph and one block that read the same input with the same scheme become one, with
      their weights one after the other, and a `Split`.
    - All but the last have a multiple of 16 output features, whole tiles.
    - Weights that something else reads stay as they are, so that no byte is stored twice.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the model in place."""
        additions = Additions(model)
        alike: dict[Hashable, list[ir.Node]] = {}
        for node in model.graph.all_nodes():
            if (key := fusion_key(node)) is not None:
                alike.setdefault(key, []).append(node)
        modified = False
        for nodes in alike.values():
            ragged = [node for node in nodes if out_features(node) % TILE_ROWS]
            fusable = [node for node in nodes if node not in ragged] + ragged[:1]
            if len(fusable) > 1:
                _fuse(fusable, nodes[0], additions)
                modified = True
        if modified:
            ir.passes.common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=modified)


def _fuse(nodes: Sequence[ir.Node], first: ir.Node, additions: Additions) -> None:
    """Put one node and a `Split` before `first`, the earliest node that reads the input."""
    fused = fused_node(nodes, nodes[0].op_type, _role(nodes), additions)
    sizes = [out_features(node) for node in nodes]
    lengths = additions.shared(("split", *sizes), f"qxc.split.{'.'.join(map(str, sizes))}", torch.tensor(sizes))
    name, inputs = f"{fused.name}.split", [fused.outputs[0], lengths]
    split = additions.node("Split", inputs, {"axis": -1}, name=name, outputs=len(nodes))
    assert first.graph is not None
    first.graph.insert_before(first, [fused, split])
    joined, part_of_it = fused.outputs[0], nodes[0].outputs[0]
    joined.type = part_of_it.type
    if part_of_it.shape is not None:
        joined.shape = ir.Shape([*part_of_it.shape[:-1], sum(sizes)])
    for node, part in zip(nodes, split.outputs, strict=True):
        replace_value(node.outputs[0], part)


def _role(nodes: Sequence[ir.Node]) -> str:
    roles = {node.metadata_props[ROLE] for node in nodes}
    if len(roles) == 1:
        return roles.pop()
    return next((fused for fused, parts in _FUSED_ROLES.items() if roles <= parts), "other")
