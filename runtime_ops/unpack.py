"""The part that all function bodies share: packed tensors to a float32 matrix, in ONNX operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from qxcompiler.formats import E2M1_VALUES, E8M0, E8M0_VALUES, TWO_LEVEL, ScaleType
from qxcompiler.packing.tile16 import BLOCK_COLUMNS, FIELDS, STEPS, TILE_ROWS

__all__ = ["ATTRIBUTES", "Body", "WeightType", "decoded_weight"]

ATTRIBUTES = {
    "K": ir.AttributeType.INT,
    "N": ir.AttributeType.INT,
    "group_size": ir.AttributeType.INT,
    "layout": ir.AttributeType.STRING,
}


class Body(Tape):
    """Writes the nodes of a function body."""

    def constant(self, value: object, dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """A number, or a list of numbers, of `dtype`."""
        tensor = ir.tensor(np.array(value, dtype.numpy()), name=None)
        return self.op("Constant", [], attributes={"value": tensor})

    def attribute(self, name: str) -> ir.Value:
        """An attribute of the function: int64 or string, a scalar."""
        kind = {**ATTRIBUTES, "activation": ir.AttributeType.STRING}[name]
        field = "value_int" if kind == ir.AttributeType.INT else "value_string"
        return self.op("Constant", [], attributes={field: ir.RefAttr(field, name, kind)})

    def attribute_list(self, *names: str) -> ir.Value:
        """Integer attributes as int64 [len(names)]."""
        one = self.constant([1])
        return self.op("Concat", [self.op("Reshape", [self.attribute(name), one]) for name in names], {"axis": 0})

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """`value` as `dtype`."""
        return self.op("Cast", [value], {"to": int(dtype)})

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """`value` in another shape; 0 keeps a size, -1 is what is left."""
        return self.op("Reshape", [value, self.constant(list(shape))])


@dataclass(frozen=True)
class WeightType:
    """What an operator has to know of a weight to read it: the rest are attributes and shapes.

    Attributes:
        code_type: `Int`, `UInt`, `Lut` or `Fp`.
        bits: of a code.
        scale_type: how scales are stored.
    """

    code_type: str
    bits: int
    scale_type: ScaleType

    @property
    def suffix(self) -> str:
        """What names of operators say of it: `Format.operator_suffix`."""
        return f"{self.code_type}{self.bits}{self.scale_type.operator_suffix}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors of such a weight, in the operators' order."""
        tables = {"UInt": ("zero_points",), "Lut": ("codebook",)}
        return ("packed", *self.scale_type.tensors, *tables.get(self.code_type, ()))


def decoded_weight(body: Body, weight: WeightType, inputs: Mapping[str, ir.Value]) -> ir.Value:
    """The matrix that packed tensors stand for.

    Args:
        body: where the nodes go.
        weight: what the tensors hold.
        inputs: `packed` uint8 [T, B, bits, 64]; `scales` [T, G, 16], float16 or uint8; `row_scales` float16 [T, 1, 16]
            for two-level scales; `zero_points` uint8 [T, G, 16] for `UInt`; `codebook` int8 [T, 16, 2**bits] or
            [1, 1, 2**bits] for `Lut`.

    Returns:
        float32 [N, K].
    """
    bits = weight.bits
    codes = _codes(body, bits, inputs["packed"])
    scales = _scales(body, weight.scale_type, inputs)
    columns = body.op("Range", [body.constant(0), body.attribute("K"), body.constant(1)])
    groups = body.op("Div", [columns, body.attribute("group_size")])
    if weight.code_type == "Fp":
        values = _floats_of(body, E2M1_VALUES, codes)
    elif weight.code_type == "Lut":
        values = body.cast(_looked_up(body, bits, codes, inputs["codebook"]), ir.DataType.FLOAT)
    elif weight.code_type == "UInt":
        zeros = body.cast(_by_row(body, inputs["zero_points"]), ir.DataType.FLOAT)
        values = body.op("Sub", [body.cast(codes, ir.DataType.FLOAT), _spread(body, zeros, groups)])
    else:
        middle = body.constant(float(2 ** (bits - 1)), ir.DataType.FLOAT)
        values = body.op("Sub", [body.cast(codes, ir.DataType.FLOAT), middle])
    scale = _spread(body, scales, groups)
    first, axis = body.constant([0]), body.constant([0])
    return body.op("Slice", [body.op("Mul", [scale, values]), first, body.attribute_list("N"), axis])


def _codes(body: Body, bits: int, packed: ir.Value) -> ir.Value:
    """uint8 [16 T, K], by the layout's table."""
    lines = [body.op("Gather", [packed, body.constant(line)], {"axis": 2}) for line in range(bits)]

    def shifted(value: ir.Value, by: int, direction: str) -> ir.Value:
        amount = body.constant(by, ir.DataType.UINT8)
        return body.op("BitShift", [value, amount], {"direction": direction}) if by else value

    parts: list[list[ir.Value]] = [[] for _ in range(STEPS)]
    for field in FIELDS[bits]:
        part = shifted(lines[field.line], field.line_bit, "RIGHT")
        if field.line_bit + field.width < 8:
            part = body.op("BitwiseAnd", [part, body.constant(2**field.width - 1, ir.DataType.UINT8)])
        parts[field.step].append(shifted(part, field.code_bit, "LEFT"))

    steps = []
    for step in parts:
        code = step[0]
        for part in step[1:]:
            code = body.op("BitwiseOr", [code, part])
        steps.append(body.op("Unsqueeze", [code, body.constant([2])]))
    by_step = body.op("Concat", steps, {"axis": 2})  # [T, B, 8, 64]
    split = body.reshape(by_step, [0, 0, STEPS, TILE_ROWS, 4])
    rows = body.op("Transpose", [split], {"perm": [0, 3, 1, 2, 4]})  # [T, 16, B, 8, 4]
    padded_columns = body.op(
        "Mul", [body.op("Shape", [packed], {"start": 1, "end": 2}), body.constant([BLOCK_COLUMNS])]
    )
    shape = body.op("Concat", [body.constant([-1]), padded_columns], {"axis": 0})
    codes = body.op("Reshape", [rows, shape])
    return body.op("Slice", [codes, body.constant([0]), body.attribute_list("K"), body.constant([1])])


def _scales(body: Body, scale_type: ScaleType, inputs: Mapping[str, ir.Value]) -> ir.Value:
    """float32 [16 T, G]."""
    scales = _by_row(body, inputs["scales"])
    if scale_type is E8M0:
        return _floats_of(body, E8M0_VALUES, scales)
    values = body.cast(scales, ir.DataType.FLOAT)
    if scale_type is TWO_LEVEL:
        rows = body.cast(_by_row(body, inputs["row_scales"]), ir.DataType.FLOAT)
        values = body.op("Mul", [values, body.op("Mul", [rows, body.constant(1 / 256, ir.DataType.FLOAT)])])
    return values


def _by_row(body: Body, per_group: ir.Value) -> ir.Value:
    """[T, G, 16] -> [16 T, G]."""
    groups = body.op("Shape", [per_group], {"start": 1, "end": 2})
    shape = body.op("Concat", [body.constant([-1]), groups], {"axis": 0})
    return body.op("Reshape", [body.op("Transpose", [per_group], {"perm": [0, 2, 1]}), shape])


def _spread(body: Body, by_row: ir.Value, groups: ir.Value) -> ir.Value:
    """[16 T, G] -> [16 T, K]: to every column its group's number."""
    return body.op("Gather", [by_row, groups], {"axis": 1})


def _looked_up(body: Body, bits: int, codes: ir.Value, codebook: ir.Value) -> ir.Value:
    """int8 [16 T, K]: every row's codes in the row's table."""
    rows = body.op("Shape", [codes], {"start": 0, "end": 1})
    shape = body.op("Concat", [rows, body.constant([2**bits])], {"axis": 0})
    tables = body.op("Expand", [body.reshape(codebook, [-1, 2**bits]), shape])
    return body.op("GatherElements", [tables, body.cast(codes, ir.DataType.INT32)], {"axis": 1})


def _floats_of(body: Body, table: Sequence[float], codes: ir.Value) -> ir.Value:
    """float32, the shape of `codes`: a fixed table's number for every code."""
    values = body.constant(table, ir.DataType.FLOAT)
    return body.op("Gather", [values, body.cast(codes, ir.DataType.INT32)], {"axis": 0})
