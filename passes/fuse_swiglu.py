"""Compute gate, up and the product between them in one packed operator."""

from __future__ import annotations

import onnx_ir as ir

from qxcompiler.packing.tile16 import TILE_ROWS
from qxcompiler.passes.packed_nodes import fused_node, fusion_key, out_features
from qxcompiler.passes.rewriting import Additions, replace_value
from qxcompiler.runtime_ops.operators import function_for, operator_name, operator_of

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
        for operator in sorted(operators):
            function = function_for(operator, model.opset_imports[""])
            model.functions[function.identifier()] = function
        if operators:
            ir.passes.common.RemoveUnusedNodesPass()(model)
            ir.passes.common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        return ir.passes.PassResult(model, modified=bool(operators))


def _gate_and_up(product: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The two nodes whose outputs a product gates, where one node can take the place of all."""
    if not _is(product, "Mul"):
        return None
    for silu, other in (product.inputs, reversed(product.inputs)):
        gate_output, between = _silu(silu)
        gate, up = (None if value is None else value.producer() for value in (gate_output, other))
        if gate is None or up is None or gate is up:
            continue
        key, N = fusion_key(gate), gate.attributes.get_int("N", 0)
        alike = key is not None and key == fusion_key(up) and out_features(up) == N and N % TILE_ROWS == 0
        if alike and _nothing_else_reads({gate, up, *between}, product):
            return gate, up
    return None


def _silu(value: ir.Value | None) -> tuple[ir.Value | None, list[ir.Node]]:
    """x and the nodes after it, where `value` is silu(x)."""
    node = None if value is None else value.producer()
    if node is None:
        return None, []
    if _is(node, "Swish") and node.attributes.get_float("alpha", 1.0) == 1:
        return node.inputs[0], [node]
    if _is(node, "Mul"):
        for x, activated in (node.inputs, reversed(node.inputs)):
            sigmoid = None if activated is None else activated.producer()
            if sigmoid is not None and _is(sigmoid, "Sigmoid") and sigmoid.inputs[0] is x:
                return x, [sigmoid, node]
    return None, []


def _is(node: ir.Node, op_type: str) -> bool:
    return node.domain == "" and node.op_type == op_type


def _nothing_else_reads(nodes: set[ir.Node], product: ir.Node) -> bool:
    """Whether all that the nodes compute serves the product alone, in the product's graph."""
    values = [value for node in nodes for value in node.outputs]
    readers = {use.node for value in values for use in value.uses()}
    in_its_graph = all(node.graph is product.graph for node in nodes)
    return in_its_graph and readers <= {*nodes, product} and not any(value.is_graph_output() for value in values)
