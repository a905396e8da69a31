"""Compute gate, up and the product between them in one packed operator."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter.pattern import AttrVar, OrValue, Pattern

from qxcompiler.graph.nodes import replace_value
from qxcompiler.packing.tile16 import TILE_ROWS
from qxcompiler.passes.packed_nodes import fused_node, fusion_key, out_features
from qxcompiler.passes.rewriting import Additions, add_functions
from qxcompiler.runtime_ops.operators import operator_name, operator_of

__all__ = ["FuseSwiGlu"]


class FuseSwiGlu(ir.passes.InPlacePass):
    """Compute `silu(gate) * up` in one packed operator.

    - `Mul(Mul(gate, Sigmoid(gate)), up)`, operands in any order, or `Mul(Swish(gate), up)`, where gate and up are
      packed `MatMul` nodes that read the same input with the same scheme, becomes a packed `SwiGlu`, whose weight
      holds a tile of each in turn.
    - Both have the same number of output features, a multiple of 16.
    - Nothing else reads gate, up, their weights or what is between.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the model in place."""
        additions = Additions(model)
        operators = set()
        for product in list(model.graph.all_nodes()):
            pair = _gate_and_up(product)
            if pair is None:
                continue
            read = operator_of(pair[0])
            assert read is not None and read.weight is not None
            operator = operator_name(read.weight, "SwiGlu")
            fused = fused_node(pair, operator, "gate_up", additions, interleaved=True)
            assert product.graph is not None
            product.graph.insert_before(product, fused)
            replace_value(product.outputs[0], fused.outputs[0])
            operators.add(operator)
        add_functions(model, operators)
        if operators:
            ir.passes.common.RemoveUnusedNodesPass()(model)
            ir.passes.common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        return ir.passes.PassResult(model, modified=bool(operators))


def _silu(op: Any, x: Any) -> OrValue:
    swish = op.Swish(x, alpha=AttrVar("alpha", can_match_none=True))
    return OrValue([op.Mul(x, op.Sigmoid(x)), op.Mul(op.Sigmoid(x), x), swish])


def _is_one_layer(match: Any, gate: ir.Value, up: ir.Value, alpha: ir.Attr | None = None) -> bool:
    """Whether gate and up are alike, and serve the match alone, in its graph; the pattern sees to what is between."""
    first, second = gate.producer(), up.producer()
    if first is None or second is None or first is second or (alpha is not None and alpha.as_float() != 1):
        return False
    key, N = fusion_key(first), first.attributes.get_int("N", 0)
    alike = key is not None and key == fusion_key(second) and out_features(second) == N and N % TILE_ROWS == 0
    readers = {use.node for value in (gate, up) for use in value.uses()}
    in_its_graph = all(node.graph is first.graph for node in match.nodes)
    is_output = gate.is_graph_output() or up.is_graph_output()
    return alike and in_its_graph and readers <= set(match.nodes) and not is_output


_PATTERNS = (
    Pattern(lambda op, gate, up: op.Mul(_silu(op, gate), up), _is_one_layer),
    Pattern(lambda op, gate, up: op.Mul(up, _silu(op, gate)), _is_one_layer),
)


def _gate_and_up(product: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The two nodes whose outputs a product gates, where one node can take the place of all."""
    for pattern in _PATTERNS:
        if match := pattern.match(None, product.graph, product):
            return match.bindings["gate"].producer(), match.bindings["up"].producer()
    return None
