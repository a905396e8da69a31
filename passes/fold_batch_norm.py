"""Fold batch normalization into the layer before it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qxcompiler.graph.nodes import is_standard, replace_value
from qxcompiler.passes.rewriting import Additions

__all__ = ["FoldBatchNorm"]


class FoldBatchNorm(ir.passes.InPlacePass):
    """Fold a `BatchNormalization` into the `Conv`, `ConvTranspose`, `Gemm` or `MatMul` whose output it alone reads.

    With the factor `a = scale / sqrt(var + epsilon)` of a channel, the layer's weight becomes `a * W` and its bias
    `a * (bias - mean) + B` (Jacob et al. 2018, section 3.2). What the model computes stays, but for rounding.

    - The weight, the bias and the four parameters are constants; other readers of the weight keep the old one.
    - A `MatMul` becomes a `Gemm`, and must give two dimensions: of more, the second would be no feature.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the model in place."""
        additions = Additions(model)
        modified = False
        for norm in list(model.graph.all_nodes()):
            if (layer := _layer_before(norm)) is not None:
                _fold(layer, norm, additions)
                modified = True
        if modified:
            ir.passes.common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=modified)


def _layer_before(norm: ir.Node) -> ir.Node | None:
    """The layer that a node can be folded into."""
    if not is_standard(norm, ("BatchNormalization",)) or norm.attributes.get_int("training_mode", 0) != 0:
        return None
    if len(norm.inputs) != 5 or any(_array(value) is None for value in norm.inputs[1:]):
        return None
    if any(value.name for value in norm.outputs[1:]):  # statistics, which older versions may give
        return None
    product = norm.inputs[0]
    layer = None if product is None else product.producer()
    if layer is None or product is None or layer.graph is not norm.graph or product.is_graph_output():
        return None
    if len(product.uses()) != 1 or not is_standard(layer, ("Conv", "ConvTranspose", "Gemm", "MatMul")):
        return None
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    if _array(layer.inputs[1]) is None or (bias is not None and not _is_row(_array(bias), norm)):
        return None
    flat = product.shape is not None and product.shape.rank() == 2
    return layer if layer.op_type != "MatMul" or flat else None


def _is_row(bias: np.ndarray | None, norm: ir.Node) -> bool:
    """Whether a bias is one number a channel, or one for all: that of a `Gemm` may have rows of its own."""
    if bias is None:
        return False
    *rows, channels = bias.shape or (1,)
    gain = _array(norm.inputs[1])
    return gain is not None and all(size == 1 for size in rows) and channels in (1, gain.size)


def _array(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a constant."""
    if value is None or value.const_value is None or not value.is_initializer() or value.is_graph_input():
        return None
    return value.const_value.numpy()


def _fold(layer: ir.Node, norm: ir.Node, additions: Additions) -> None:
    weight = layer.inputs[1]
    W, gain, shift, mean, variance = (_array(value) for value in (weight, *norm.inputs[1:]))
    assert weight is not None and W is not None
    assert gain is not None and shift is not None and mean is not None and variance is not None
    # in double precision, as the factors' error is in every number
    factor = gain.astype(np.float64) / np.sqrt(variance.astype(np.float64) + norm.attributes.get_float("epsilon", 1e-5))
    old = _array(layer.inputs[2]) if len(layer.inputs) > 2 else None
    bias = np.float64(0) if old is None else old.astype(np.float64) * layer.attributes.get_float("beta", 1.0)
    added = np.broadcast_to(factor * (bias - mean) + shift, (1, factor.size)).reshape(-1)
    folded = additions.constant(ir.tensor(_scaled(W, factor, layer).astype(W.dtype), name=f"{weight.name}.folded"))
    constant = additions.constant(ir.tensor(added.astype(W.dtype), name=f"{layer.name}.bias"))
    attributes = {name: each.value for name, each in layer.attributes.items() if name != "beta"}
    operator = "Gemm" if layer.op_type == "MatMul" else layer.op_type
    inputs = [layer.inputs[0], folded, constant]
    replacement = ir.node(operator, inputs, attributes, name=layer.name, metadata_props=dict(layer.metadata_props))
    graph = norm.graph
    assert graph is not None
    graph.insert_before(layer, replacement)
    replace_value(norm.outputs[0], replacement.outputs[0])
    graph.remove([norm, layer], safe=True)


def _scaled(W: np.ndarray, factor: np.ndarray, layer: ir.Node) -> np.ndarray:
    """The weight with every output channel times its factor."""
    points = [1] * (W.ndim - 2)
    if layer.op_type == "Conv":  # [C_out, C_in / group, ...]
        scaled = W * factor.reshape(-1, 1, *points)
    elif layer.op_type == "ConvTranspose":  # [C_in, C_out / group, ...]
        group = layer.attributes.get_int("group", 1)
        scaled = W.reshape(group, -1, *W.shape[1:]) * factor.reshape(group, 1, -1, *points)
    else:
        scaled = W * (factor[:, None] if layer.attributes.get_int("transB", 0) else factor)
    return np.asarray(scaled).reshape(W.shape)
