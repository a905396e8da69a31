"""What a model holds besides its packed weights: how many bytes stay as they are, and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir
from pydantic import BaseModel

from qxcompiler.graph import FLOAT_TYPES, readers
from qxcompiler.runtime_ops.operators import DOMAIN

__all__ = ["Coverage", "Unquantized", "coverage"]

_QUANTIZED = {
    "DequantizeLinear",
    "QuantizeLinear",
    "MatMulInteger",
    "ConvInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "MatMulNBits",
    "MatMulBnb4",
    "MatMulFpQ4",
    "GatherBlockQuantized",
    "QAttention",
    "QGemm",
    "QMoE",
    "QEmbedLayerNormalization",
}
_RECURRENT = {"LSTM", "GRU", "RNN"}
_LINEAR = {"MatMul", "Gemm", "Gather"}
_SMALL_ELEMENTS = 1024  # of a bias, a norm's gain, a constant
_INDICES = "indices, shapes and other integers"
_SMALL = "biases, norms and constants, too small to pay"
_OF_ANY_OPERATOR = {_INDICES, _SMALL}


class Unquantized(BaseModel):
    """Tensors of one kind that were not packed.

    Attributes:
        operator: what reads them.
        reason: why they stay as they are.
        tensors: how many.
        bytes: what they take.
        share: their share of the bytes of all of the model's tensors.
    """

    operator: str
    reason: str
    tensors: int
    bytes: int
    share: float


@dataclass(frozen=True)
class Coverage:
    """The tensors of a model that are not packed.

    Attributes:
        rows: by operator and reason, the most bytes first.
        weight_bytes: what the weights among them take: all but indices, shapes and the like.
        weights: how many numbers these hold.
    """

    rows: list[Unquantized]
    weight_bytes: int
    weights: int


def coverage(
    model: ir.Model, packed: Collection[ir.Value], packed_bytes: int, reasons: Mapping[ir.Value, str]
) -> Coverage:
    """Sum up the tensors of a normalized model that are not packed.

    Args:
        model: the model before its sites are replaced, or one compiled earlier.
        packed: the initializers that are packed.
        packed_bytes: what they take.
        reasons: why a site's initializer was left as it is.
    """
    found: dict[tuple[str, str], list[ir.TensorProtocol]] = {}
    weight_bytes = weights = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if value in packed or tensor is None or tensor.dtype == ir.DataType.STRING:
            continue
        uses, _ = readers(value)
        nodes = sorted(uses, key=_order)
        operator = nodes[0].op_type if nodes else "output"
        reason = reasons.get(value) or _reason(nodes, tensor)
        found.setdefault((operator if reason not in _OF_ANY_OPERATOR else "", reason), []).append(tensor)
        if reason != _INDICES:
            weight_bytes += tensor.nbytes
            weights += _count(uses, tensor)
    total = packed_bytes + sum(tensor.nbytes for tensors in found.values() for tensor in tensors)
    rows = [
        Unquantized(
            operator=operator,
            reason=reason,
            tensors=len(tensors),
            bytes=(size := sum(tensor.nbytes for tensor in tensors)),
            share=size / total if total else 0.0,
        )
        for (operator, reason), tensors in found.items()
    ]
    rows.sort(key=lambda row: (-row.bytes, row.operator, row.reason))
    return Coverage([row for row in rows if row.bytes], weight_bytes, weights)


def _order(node: ir.Node) -> tuple[bool, bool, str]:
    return not _is_quantized(node), node.op_type not in _LINEAR | _RECURRENT | {"Conv"}, node.op_type


def _is_quantized(node: ir.Node) -> bool:
    return node.op_type in _QUANTIZED or node.op_type.startswith("QLinear") or node.domain == DOMAIN


def _reason(nodes: list[ir.Node], tensor: ir.TensorProtocol) -> str:
    if any(_is_quantized(node) for node in nodes):
        return "quantized already"
    if tensor.dtype not in FLOAT_TYPES:
        return _INDICES
    if tensor.size < _SMALL_ELEMENTS or not nodes:
        return _SMALL
    operator = nodes[0].op_type
    if operator == "Conv":
        return "a convolution other than 1x1 of stride 1, without padding and groups"
    if operator in _RECURRENT:
        return "a recurrent layer, which only dialect qdq holds in fewer bits"
    if operator in _LINEAR:
        return "read in a way that no packed operator computes"
    return f"no packed operator does what {operator} does"


def _count(uses: Mapping[ir.Node, int], tensor: ir.TensorProtocol) -> int:
    """How many weights a tensor holds; where a byte holds several, the node that reads them says of how many bits."""
    for node, index in uses.items():
        bits = node.attributes.get_int("bits", 0) if index < 2 else 0
        if bits > 0 and tensor.dtype == ir.DataType.UINT8:
            return tensor.nbytes * 8 // bits
    return tensor.size
