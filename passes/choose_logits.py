"""Let a caller choose for which tokens a language model computes logits: writing text needs the last one's alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qxcompiler.graph.nodes import is_standard
from qxcompiler.passes.rewriting import Additions
from qxcompiler.runtime_ops.norm import NORM_TYPES
from qxcompiler.runtime_ops.operators import HADAMARD, operator_of
from qxcompiler_runtime.caches import LOGITS, LOGITS_FROM, is_past

__all__ = ["ChooseLogits"]

_LENGTH = "logits_length"
_BY_TOKEN = {HADAMARD, *(each.name for each in NORM_TYPES if not each.skip)}


class ChooseLogits(ir.passes.InPlacePass):
    """Let a caller choose for which tokens a language model computes logits.

    The model gets an input `logits_from`, int64 [1], with the default 0: the first new token that has logits, from the
    end where it is negative. What computes them is given those tokens alone. It is whatever treats every token alike:
    products, norms, casts, and arithmetic with constants. Who does not know of the input sees no difference.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the model in place."""
        logits = next((value for value in model.graph.outputs if value.name == LOGITS), None)
        keeps = any(is_past(value.name or "") for value in model.graph.inputs)
        if not keeps or logits is None or logits.shape is None or len(logits.shape) != 3:
            return ir.passes.PassResult(model, modified=False)
        nodes = _token_by_token(logits)
        if LOGITS_FROM in model.graph.initializers or not any(map(_is_product, nodes)):
            return ir.passes.PassResult(model, modified=False)
        additions = Additions(model)
        chosen = additions.constant(ir.tensor(np.zeros(1, np.int64), name=LOGITS_FROM))
        model.graph.inputs.append(chosen)
        end, axis = (
            additions.constant(ir.tensor(np.array([number]), name=f"{LOGITS_FROM}.{name}"))
            for name, number in (("end", np.iinfo(np.int64).max), ("axis", 1))
        )
        first = nodes[-1]
        data = _data(first)
        cut = additions.node("Slice", [data, chosen, end, axis], name=f"{LOGITS_FROM}.slice")
        first.replace_input_with(first.inputs.index(data), cut.outputs[0])
        model.graph.insert_before(first, cut)
        for value in (node.outputs[0] for node in nodes):
            if value.shape is not None:
                value.shape = ir.Shape([value.shape[0], _LENGTH, *value.shape[2:]])
        return ir.passes.PassResult(model, modified=True)


def _token_by_token(logits: ir.Value) -> list[ir.Node]:
    """The nodes that compute logits, and nothing else, from one value, token by token: from the last one on."""
    nodes: list[ir.Node] = []
    value: ir.Value | None = logits
    while value is not None and (node := value.producer()) is not None and (data := _data(node)) is not None:
        if value is not logits and (value.is_graph_output() or len(value.uses()) != 1):
            break
        nodes.append(node)
        value = data
    return nodes


def _data(node: ir.Node) -> ir.Value | None:
    """What a node computes each token of its output from, and from no other token; None where it is no such node."""
    operator = operator_of(node)
    if is_standard(node, ("Cast", "Tanh")) or _is_product(node) or (operator and operator.name in _BY_TOKEN):
        return node.inputs[0]
    varying = [value for value in node.inputs if value is not None and value.const_value is None]
    rows = all(len(value.const_value.shape) <= 1 for value in node.inputs if value and value.const_value)
    return varying[0] if is_standard(node, ("Add", "Sub", "Mul", "Div")) and rows and len(varying) == 1 else None


def _is_product(node: ir.Node) -> bool:
    """Whether a node multiplies every token by a constant matrix."""
    operator = operator_of(node)
    if operator is not None:
        return operator.kind == "MatMul"
    weight = node.inputs[1] if is_standard(node, ("MatMul",)) else None
    turned = weight.producer() if weight is not None else None
    if turned is not None and is_standard(turned, ("Transpose",)):
        weight = turned.inputs[0]
    return weight is not None and weight.const_value is not None and len(weight.const_value.shape) == 2
