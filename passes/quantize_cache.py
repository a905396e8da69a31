"""Let a model keep keys and values in fewer bits."""

from __future__ import annotations

import onnx_ir as ir
import torch

from qxcompiler.errors import ModelError
from qxcompiler.formats import CacheFormat
from qxcompiler.graph.nodes import is_standard, replace_value
from qxcompiler.passes.rewriting import Additions, add_functions
from qxcompiler.runtime_ops.attention import ATTENTION_TYPES, AttentionType
from qxcompiler.runtime_ops.operators import operator_of
from qxcompiler_runtime.caches import CACHE_FORMAT, is_past, is_present

__all__ = ["QuantizeCache"]

_TYPES = {each.name: each for each in ATTENTION_TYPES if each.cached}


class QuantizeCache(ir.passes.InPlacePass):
    """Let every attention with a cache keep it in a format.

    - Past inputs and present outputs become rows of bytes, uint8 [B, G, P, row bytes].
    - What asks for the shape of a past still sees the size of a head.
    - The model's metadata says so (`qxc.cache_format`).

    Args:
        fmt: of all keys and values.
    """

    def __init__(self, fmt: CacheFormat) -> None:
        self.fmt = fmt

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the model in place.

        Raises:
            ModelError: it keeps something that is not an attention operator's alone, or nothing.
        """
        pasts = [value for value in model.graph.inputs if is_past(value.name or "")]
        presents = [value for value in model.graph.outputs if is_present(value.name or "")]
        attentions = list({node: None for past in pasts for node in past.consumers() if node.op_type in _TYPES})
        kept = {value for node in attentions for value in (*_pasts_of(node), *node.outputs[1:])}
        odd = [past for past in pasts if past not in kept or not _is_read_once(past)]
        odd += [present for present in presents if present not in kept or present.consumers()]
        if odd or not pasts:
            problem = f"'{odd[0].name}' is not an attention operator's alone" if odd else "the model keeps none"
            raise ModelError(f"keys and values in {self.fmt.name}", problem, "leave out --kv")
        additions = Additions(model)
        for node in attentions:
            kind = _TYPES[node.op_type]
            node.op_type = AttentionType(kind.rotary, kind.cached, self.fmt).name
            for past, present in zip(_pasts_of(node), node.outputs[1:], strict=True):
                self._keep_in_bytes(past, present, additions)
        add_functions(model, {node.op_type for node in attentions})
        ir.passes.common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        model.metadata_props[CACHE_FORMAT] = self.fmt.name
        model.graph.sort()
        return ir.passes.PassResult(model, modified=True)

    def _keep_in_bytes(self, past: ir.Value, present: ir.Value, additions: Additions) -> None:
        assert past.shape is not None
        size = past.shape[3]
        assert isinstance(size, int)  # attention that became an operator has a known size
        for asked in [node for node in past.consumers() if is_standard(node, ("Shape",))]:
            _let_see_size(asked, past, size, additions)
        for value in (past, present):
            value.dtype = ir.DataType.UINT8
            sizes = value.shape if value.shape is not None else past.shape
            value.shape = ir.Shape([*sizes[:3], self.fmt.row_bytes(size)])


def _pasts_of(node: ir.Node) -> list[ir.Value]:
    operator = operator_of(node)
    assert operator is not None
    inputs = dict(zip(operator.inputs, node.inputs, strict=True))
    return [value for name in ("past_key", "past_value") if (value := inputs[name]) is not None]


def _is_read_once(past: ir.Value) -> bool:
    """By one attention, whatever asks for its shape."""
    return sum(not is_standard(use.node, ("Shape",)) for use in past.uses()) == 1


def _let_see_size(asked: ir.Node, past: ir.Value, size: int, additions: Additions) -> None:
    """What asks for the shape of a past, or part of it, gets that of its numbers."""
    graph = asked.graph
    assert isinstance(graph, ir.Graph)

    def number(value: int) -> ir.Value:
        return additions.shared(("number", value), "qxc.number", torch.tensor([value]))

    def made(operator: str, inputs: list[ir.Value], **attributes: object) -> ir.Value:
        node = additions.node(operator, inputs, attributes, name=f"{past.name}.size")
        graph.append(node)
        return node.outputs[0]

    start, end = asked.attributes.get_int("start", 0), asked.attributes.get_int("end", 4)
    whole = made("Concat", [made("Shape", [past], start=0, end=3), number(size)], axis=0)
    replace_value(asked.outputs[0], made("Slice", [whole, number(start), number(end)]))
    graph.remove(asked, safe=True)
