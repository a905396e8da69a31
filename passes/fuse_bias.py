"""Add a layer's bias in its packed operator."""

from __future__ import annotations

import onnx_ir as ir

from qxcompiler.graph.nodes import is_standard, replace_value
from qxcompiler.passes.packed_nodes import is_packed_matmul, out_features
from qxcompiler.passes.rewriting import Additions, bias_input

__all__ = ["FuseBias"]


class FuseBias(ir.passes.InPlacePass):
    """Add a layer's bias in its packed operator, where the model has a `MatMul` and an `Add`.

    - An `Add` of a constant, at either side, to the output of a packed `MatMul` without a bias becomes that bias.
    - The constant is the same for every row, and the sum has the shape of the product.
    - Nothing else reads the product, and the `Add` is in the same graph.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the model in place."""
        additions = Additions(model)
        modified = False
        for node in list(model.graph.all_nodes()):
            add = _only_reader(node) if _has_no_bias(node) else None
            if add is None or (bias := _bias(node, add, additions)) is None:
                continue
            node.replace_input_with(len(node.inputs) - 1, bias)
            replace_value(add.outputs[0], node.outputs[0])
            assert add.graph is not None
            add.graph.remove(add, safe=True)
            modified = True
        if modified:
            ir.passes.common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=modified)


def _has_no_bias(node: ir.Node) -> bool:
    """Whether it is a packed `MatMul` with a zero of shape [1] for a bias."""
    if not is_packed_matmul(node):
        return False
    bias = None if node.inputs[-1] is None else node.inputs[-1].const_value
    return bias is not None and bias.shape == (1,) and not bias.numpy().any()


def _only_reader(node: ir.Node) -> ir.Node | None:
    """The node of the same graph that reads the output once, where nothing else does."""
    product = node.outputs[0]
    readers = [use.node for use in product.uses()]
    if len(readers) != 1 or product.is_graph_output() or readers[0].graph is not node.graph:
        return None
    return readers[0]


def _bias(node: ir.Node, add: ir.Node, additions: Additions) -> ir.Value | None:
    """What `add` adds to the output of `node`, as the operator takes it."""
    if not is_standard(add, ("Add",)):
        return None
    product = node.outputs[0]
    (added,) = (value for value in add.inputs if value is not product)
    if added is None or added.const_value is None:
        return None
    rank = 1 if product.shape is None else product.shape.rank()  # at least
    if added.const_value.shape.rank() > rank:
        return None
    return bias_input(added, out_features(node), additions)
