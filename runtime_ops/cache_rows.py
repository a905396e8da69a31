"""Rows of keys and values that are kept in fewer bits, read and written in ONNX operators: `formats/cache.py`."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from qxcompiler.formats import E8M0_VALUES, LEAST_SCALE, NAN_SCALE, SCALE_BYTES, CacheFormat
from qxcompiler.runtime_ops.unpack import as_float

__all__ = ["CacheRows"]


class CacheRows:
    """Writes the nodes that encode and decode rows.

    Args:
        op: writes the nodes.
        fmt: what rows are kept as.
    """

    def __init__(self, op: OpBuilder, fmt: CacheFormat) -> None:
        self.op, self.fmt = op, fmt
        powers = (0.0, *E8M0_VALUES[1:])  # by a float32's exponent field
        self.powers = op.Constant(value_floats=powers)
        self.powers.dtype = ir.DataType.FLOAT

    def encoded(self, X: ir.Value) -> ir.Value:
        """float32 [B, G, L, D], rotated where the format says so, as uint8 [B, G, L, row bytes]."""
        op, fmt = self.op, self.fmt
        zeros = self._one_column(op.ReduceSum(op.Mul(X, 0.0), [-1]))
        exact = op.Add(
            op.Div(self._one_column(op.ReduceMax(op.Abs(X), [-1])), fmt.largest), zeros
        )  # NaN, where a number of the row is not finite
        exact.dtype = ir.DataType.FLOAT
        usable = op.GreaterOrEqual(exact, LEAST_SCALE)
        positive = op.Where(usable, exact, 1.0)
        # the upper half of a float32, rounded up: the exponent, and seven bits of fraction, which may carry to it
        reached = as_float(op, op.GreaterOrEqual(positive, op.Slice(self.powers, [1], [255])))
        exponent = self._one_column(op.ReduceSum(reached, [-1]))
        steps = op.Ceil(op.Mul(op.Div(positive, self._power(exponent)), 128.0))
        upper = op.Add(op.Mul(op.Sub(exponent, 1.0), 128.0), steps)
        upper.dtype = ir.DataType.FLOAT
        scaled = op.Div(op.Where(usable, X, 0.0), self._scale(upper))
        scaled.dtype = ir.DataType.FLOAT
        codes = op.Floor(op.Add(scaled, fmt.zero_point + 0.5))
        if fmt.bits == 4:
            codes = self._halves_together(codes)
        upper = op.Where(usable, upper, op.Where(op.IsNaN(exact), float(NAN_SCALE), 0.0))
        upper.dtype = ir.DataType.FLOAT
        high = op.Floor(op.Mul(upper, 1 / 256))
        high.dtype = ir.DataType.FLOAT
        low = op.Sub(upper, op.Mul(high, 256.0))
        return op.Cast(op.Concat(codes, low, high, axis=-1), to=ir.DataType.UINT8)

    def decoded(self, rows: ir.Value, size: ir.Value) -> ir.Value:
        """The inverse; `size` is D, int64 [1]."""
        op, fmt = self.op, self.fmt
        codes = op.Slice(rows, [0], [-SCALE_BYTES], [-1])
        codes.dtype = ir.DataType.UINT8
        if fmt.bits == 4:
            halves = op.Concat(op.BitwiseAnd(codes, 15), op.BitShift(codes, 4, direction="RIGHT"), axis=-1)
            codes = op.Slice(halves, [0], size, [-1])
        low, high = (as_float(op, op.Gather(rows, [at], axis=-1)) for at in (-2, -1))
        upper = op.Add(low, op.Mul(op.Mod(high, 128.0, fmod=1), 256.0))  # without the sign
        upper.dtype = ir.DataType.FLOAT
        return op.Mul(op.Sub(as_float(op, codes), fmt.zero_point), self._scale(upper))

    def _scale(self, upper: ir.Value) -> ir.Value:
        """The float32, not negative, whose upper half is this number."""
        op = self.op
        exponent = op.Floor(op.Mul(upper, 1 / 128))
        exponent.dtype = ir.DataType.FLOAT
        fraction = op.Sub(upper, op.Mul(exponent, 128.0))
        fraction.dtype = ir.DataType.FLOAT
        return op.Mul(self._power(exponent), op.Add(op.Mul(fraction, 1 / 128), 1.0))

    def _one_column(self, reduced: ir.Value) -> ir.Value:
        """What onnxruntime makes of no rows has the columns of before."""
        column = self.op.Slice(reduced, [0], [1], [-1])
        column.dtype = ir.DataType.FLOAT
        return column

    def _power(self, exponent: ir.Value) -> ir.Value:
        """Of two, by a float32's exponent field."""
        return self.op.Gather(self.powers, self.op.Cast(exponent, to=ir.DataType.INT32))

    def _halves_together(self, codes: ir.Value) -> ir.Value:
        """Codes of the first half of the channels, and 16 times those of the second, which may be one shorter."""
        op = self.op
        size = op.Shape(codes, start=-1)
        half = op.Div(op.Add(size, 1), 2)
        even = op.Mul(half, 2)
        padded = op.Pad(codes, op.Concat([0] * 7, op.Sub(even, size), axis=0))
        low, high = op.Slice(padded, [0], half, [-1]), op.Slice(padded, half, even, [-1])
        low.dtype = high.dtype = ir.DataType.FLOAT
        return op.Add(low, op.Mul(high, 16.0))
