"""Quantized weights found again in a compiled model, in the dialects whose operators are not ours."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from qxcompiler.errors import QxcError
from qxcompiler.formats import Scheme
from qxcompiler.runtime_ops.operators import SCHEME

__all__ = ["WEIGHT", "QuantizedNode", "quantized_node"]

WEIGHT = "qxc.weight"
"""The metadata of a node that says the shape of its weight, such as 576x1536; operators of ours have attributes."""

_MOVES = ("Cast", "Transpose", "Reshape", "Unsqueeze", "Gather")


@dataclass(frozen=True)
class QuantizedNode:
    """A node that computes with a quantized weight [N, K].

    Attributes:
        kind: what it does.
        out_features, in_features: N and K.
        scheme: None where it cannot be read.
        activation: what it multiplies, or the indices of an embedding.
        tensors: the initializers of the weight: codes, scales and, where there are some, zero points.
    """

    kind: Literal["linear", "embedding"]
    out_features: int
    in_features: int
    scheme: Scheme | None
    activation: ir.Value | None
    tensors: tuple[ir.Value, ...]


def quantized_node(node: ir.Node) -> QuantizedNode | None:
    """What a node of the dialects `qdq` and `contrib` computes with; None for any other node."""
    shape = re.fullmatch(r"([1-9][0-9]{0,9})x([1-9][0-9]{0,9})", node.metadata_props.get(WEIGHT, ""))
    if shape is None or len(node.inputs) < 2:
        return None
    kind: Literal["linear", "embedding"] = "embedding" if "Gather" in node.op_type else "linear"
    activation, tensors = _inputs(node)
    try:
        scheme: Scheme | None = Scheme.parse(node.metadata_props.get(SCHEME, ""))
    except QxcError:
        scheme = None
    return QuantizedNode(kind, int(shape[1]), int(shape[2]), scheme, activation, tensors) if tensors else None


def _inputs(node: ir.Node) -> tuple[ir.Value | None, tuple[ir.Value, ...]]:
    """What is computed with the weight, and its tensors."""
    first, second, *others = node.inputs
    if node.op_type == "MatMulNBits":
        return first, _constants((second, *others[:2]))
    if node.op_type == "GatherBlockQuantized":
        return second, _constants((first, *others[:2]))
    if node.op_type == "Gather" and first is not None and _constants([first]):  # of codes, which are decoded after it
        decoding = [use.node for use in node.outputs[0].uses() if use.node.op_type == "DequantizeLinear"]
        return second, _constants(decoding[0].inputs) if decoding else ()
    for weight, activation in ((second, first), (first, second)):
        source = _source(weight)
        decoding_node = None if source is None else source.producer()
        if decoding_node is None or decoding_node.op_type != "DequantizeLinear":
            continue
        if found := _constants(decoding_node.inputs):
            return activation, found
    return None, ()


def _source(value: ir.Value | None) -> ir.Value | None:
    """What a value was before it was moved, cast or looked up."""
    while value is not None and (node := value.producer()) is not None and node.op_type in _MOVES:
        value = node.inputs[0]
    return value


def _constants(values: Iterable[ir.Value | None]) -> tuple[ir.Value, ...]:
    """The initializers behind values; nothing where something else is behind one of them."""
    sources = [_source(value) for value in values if value is not None]
    found = [source for source in sources if source is not None and source.const_value is not None]
    return tuple(found) if len(found) == len(sources) else ()
