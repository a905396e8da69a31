"""Let a model write keys and values into memory of a fixed size, instead of giving back longer ones at every step."""

from __future__ import annotations

import onnx_ir as ir
import torch

from qxcompiler.graph.nodes import is_standard, replace_value
from qxcompiler.passes.rewriting import Additions
from qxcompiler.runtime_ops.operators import operator_of
from qxcompiler_runtime.caches import SHARED_CACHE, is_past, is_present

__all__ = ["ShareCache"]


class ShareCache(ir.passes.InPlacePass):
    """Let the past be longer than what was computed before: the same memory may then be past and present.

    - Every past is read by attention operators with a cache; every present is one's output, and nothing else's input.
    - An input, the mask, has a number for every token so far; another, the ids, for every new one.
    - How many tokens were before, which the graph takes from a past's shape, becomes the difference of those sizes.
    - The model's metadata says so (`qxc.shared_cache`). Who gives a past as long as what was before sees no difference.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the model in place."""
        pasts = [value for value in model.graph.inputs if is_past(value.name or "")]
        presents = [value for value in model.graph.outputs if is_present(value.name or "")]
        mask, ids = _input(model, all_tokens=True), _input(model, all_tokens=False)
        possible = pasts and mask is not None and ids is not None
        if not possible or not all(map(_is_kept_in_place, presents)) or not all(map(_is_kept_alone, pasts)):
            return ir.passes.PassResult(model, modified=False)
        assert mask is not None and ids is not None
        additions = Additions(model)

        def size(value: ir.Value, start: int, end: int) -> ir.Value:
            node = additions.node("Shape", [value], {"start": start, "end": end}, name=f"{value.name}.size")
            model.graph.append(node)
            return node.outputs[0]

        def made(operator: str, inputs: list[ir.Value], **attributes: object) -> ir.Value:
            node = additions.node(operator, inputs, attributes, name=f"{ids.name}.before")
            model.graph.append(node)
            return node.outputs[0]

        before = made("Sub", [size(mask, 1, 2), size(ids, 1, 2)])
        for past in pasts:
            for asked in [node for node in past.consumers() if is_standard(node, ("Shape",))]:
                whole = made("Concat", [size(past, 0, 2), before, size(past, 3, 4)], axis=0)
                ends = (asked.attributes.get_int("start", 0), asked.attributes.get_int("end", 4))
                part = [additions.shared(("size", end), "qxc.size", torch.tensor([end])) for end in ends]
                replace_value(asked.outputs[0], made("Slice", [whole, *part]))
        model.metadata_props[SHARED_CACHE] = "1"
        model.graph.sort()
        ir.passes.common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=True)


def _input(model: ir.Model, *, all_tokens: bool) -> ir.Value | None:
    """The first input with a number for every token so far, or one or more for every new one."""
    for value in model.graph.inputs:
        if is_past(value.name or "") or value.shape is None or not 2 <= len(value.shape) <= 3:
            continue
        size = value.shape[1]
        symbol = size.value.lower() if isinstance(size, ir.SymbolicDim) and size.value else ""
        counts_all = "+" in symbol or "total" in symbol
        if counts_all if all_tokens else any(word in symbol for word in ("seq", "length")) and not counts_all:
            return value
    return None


def _is_kept_in_place(present: ir.Value) -> bool:
    node = present.producer()
    operator = operator_of(node) if node is not None else None
    return operator is not None and "past_key" in operator.inputs and not present.consumers()


def _is_kept_alone(past: ir.Value) -> bool:
    for use in past.uses():
        operator = operator_of(use.node)
        keeps = operator is not None and operator.inputs[use.idx].startswith("past_")
        if not keeps and not is_standard(use.node, ("Shape",)):
            return False
    return True
