"""The part that all function bodies share: packed tensors to a float32 matrix, in ONNX operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import onnx_ir as ir
from onnxscript import OpBuilder

from qxcompiler.formats import (
    E8M0,
    E8M0_VALUES,
    ROW_SCALE_STEPS,
    SMALL_FLOATS,
    TWO_LEVEL,
    ScaleType,
    operator_suffix,
)
from qxcompiler.packing.tile16 import FIELDS, STEPS, TILE_ROWS

__all__ = ["ATTRIBUTES", "WeightType", "as_float", "attribute", "decoded_weight"]

ATTRIBUTES = {
    "K": ir.AttributeType.INT,
    "N": ir.AttributeType.INT,
    "group_size": ir.AttributeType.INT,
    "layout": ir.AttributeType.STRING,
}
_ATTRIBUTE_TYPES = {
    ir.AttributeType.INT: ir.DataType.INT64,
    ir.AttributeType.FLOAT: ir.DataType.FLOAT,
    ir.AttributeType.STRING: ir.DataType.STRING,
}
_FLOAT_VALUES = {element.code_type: element.values for element in SMALL_FLOATS}


@dataclass(frozen=True)
class WeightType:
    """What an operator has to know of a weight to read it: the rest are attributes and shapes.

    Attributes:
        code_type: `Int`, `UInt`, `Lut`, or that of a small float.
        bits: of a code.
        scale_type: how scales are stored.
    """

    code_type: str
    bits: int
    scale_type: ScaleType

    @property
    def suffix(self) -> str:
        """What names of operators say of it: `Format.operator_suffix`."""
        return operator_suffix(self.code_type, self.bits, self.scale_type)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors of such a weight, in the operators' order."""
        tables = {"UInt": ("zero_points",), "Lut": ("codebook",)}
        return ("packed", *self.scale_type.tensors, *tables.get(self.code_type, ()))


# onnxscript writes a number in the type of the value beside it. It does not know the types of inputs and attributes, so
# that the model would convert numbers beside them as it runs: the types that function bodies set spare that.


def attribute(op: OpBuilder, name: str, kind: ir.AttributeType = ir.AttributeType.INT) -> ir.Value:
    """An attribute of the function: int64, float32 or string, a scalar."""
    field = f"value_{kind.name.lower()}"
    value = op.Constant(**{field: ir.RefAttr(field, name, kind)})
    value.dtype = _ATTRIBUTE_TYPES[kind]
    return value


def as_float(op: OpBuilder, value: ir.Value) -> ir.Value:
    """`value` as float32."""
    result = op.Cast(value, to=ir.DataType.FLOAT)
    result.dtype = ir.DataType.FLOAT
    return result


def decoded_weight(
    op: OpBuilder,
    weight: WeightType,
    *,
    packed: ir.Value,
    scales: ir.Value,
    row_scales: ir.Value | None = None,
    zero_points: ir.Value | None = None,
    codebook: ir.Value | None = None,
) -> ir.Value:
    """The matrix that packed tensors stand for.

    Args:
        op: writes the nodes.
        weight: what the tensors hold.
        packed: uint8 [T, B, bits, 64].
        scales: float16 or uint8 [T, G, 16].
        row_scales: float16 [T, 1, 16], for two-level scales.
        zero_points: uint8 [T, G, 16], for `UInt`.
        codebook: int8 [T, 16, 2**bits] or [1, 1, 2**bits], for `Lut`.

    Returns:
        float32 [N, K].
    """
    bits, K, N = weight.bits, attribute(op, "K"), attribute(op, "N")
    groups = op.Div(op.Range(0, K, 1), attribute(op, "group_size"))
    codes = op.Slice(_codes(op, bits, packed), [0], op.Reshape(K, [1]), [1])
    if weight.code_type in _FLOAT_VALUES:
        values = _looked_up(op, _FLOAT_VALUES[weight.code_type], codes)
    elif weight.code_type == "Lut":
        values = as_float(op, _looked_up_by_row(op, codebook, codes, 2**bits))
    elif weight.code_type == "UInt":
        values = op.Sub(as_float(op, codes), _spread(op, as_float(op, _by_row(op, zero_points)), groups))
    else:
        values = op.Sub(as_float(op, codes), float(2 ** (bits - 1)))
    scale = _spread(op, _scales(op, weight.scale_type, scales, row_scales), groups)
    return op.Slice(op.Mul(scale, values), [0], op.Reshape(N, [1]), [0])


def _codes(op: OpBuilder, bits: int, packed: ir.Value) -> ir.Value:
    """uint8 [16 T, 32 B], by the layout's table."""
    packed.dtype = ir.DataType.UINT8
    lines = [op.Gather(packed, line, axis=2) for line in range(bits)]
    steps: list[list[ir.Value]] = [[] for _ in range(STEPS)]
    for field in FIELDS[bits]:
        part = lines[field.line]
        if field.line_bit:
            part = op.BitShift(part, field.line_bit, direction="RIGHT")
        if field.line_bit + field.width < 8:
            part = op.BitwiseAnd(part, 2**field.width - 1)
        if field.code_bit:
            part = op.BitShift(part, field.code_bit, direction="LEFT")
        steps[field.step].append(part)
    by_step = op.Concat(*(op.Unsqueeze(reduce(op.BitwiseOr, parts), [2]) for parts in steps), axis=2)  # [T, B, 8, 64]
    split = op.Reshape(by_step, [0, 0, STEPS, TILE_ROWS, 4])
    return op.Flatten(op.Transpose(split, perm=[0, 3, 1, 2, 4]), axis=2)


def _scales(op: OpBuilder, scale_type: ScaleType, scales: ir.Value, row_scales: ir.Value | None) -> ir.Value:
    """float32 [16 T, G]."""
    if scale_type is E8M0:
        scales.dtype = ir.DataType.UINT8
        return _looked_up(op, E8M0_VALUES, _by_row(op, scales))
    values = as_float(op, _by_row(op, scales))
    if scale_type is TWO_LEVEL:
        values = op.Mul(values, op.Mul(as_float(op, _by_row(op, row_scales)), 1 / ROW_SCALE_STEPS))
    return values


def _by_row(op: OpBuilder, per_group: ir.Value | None) -> ir.Value:
    """[T, G, 16] -> [16 T, G]."""
    return op.Flatten(op.Transpose(per_group, perm=[0, 2, 1]), axis=2)


def _spread(op: OpBuilder, by_row: ir.Value, groups: ir.Value) -> ir.Value:
    """[16 T, G] -> [16 T, K]: to every column its group's number."""
    return op.Gather(by_row, groups, axis=1)


def _looked_up(op: OpBuilder, table: Sequence[float], codes: ir.Value) -> ir.Value:
    """float32, the shape of `codes`: a fixed table's number for every code."""
    return op.Gather(table, op.Cast(codes, to=ir.DataType.INT32), axis=0)


def _looked_up_by_row(op: OpBuilder, codebook: ir.Value | None, codes: ir.Value, size: int) -> ir.Value:
    """int8 [16 T, K]: every row's codes in the row's table of `size` entries."""
    shape = op.Concat(op.Shape(codes, end=1), [size], axis=0)
    tables = op.Expand(op.Reshape(codebook, [-1, size]), shape)
    return op.GatherElements(tables, op.Cast(codes, to=ir.DataType.INT32), axis=1)
