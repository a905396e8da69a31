"""`Hadamard`: Y = XR, a rotation of the last axis in blocks, as an ONNX function body."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from qxcompiler.formats import LARGEST_BLOCK, SMALLEST_BLOCK, signs
from qxcompiler.runtime_ops.unpack import as_float, attribute

__all__ = ["block_size_of", "hadamard", "rotated"]


def hadamard(op: OpBuilder, X: ir.Value) -> ir.Value:
    """The function body of `Hadamard` (`formats/rotation.py`).

    Args:
        op: writes the nodes.
        X: float32 or float16 [..., K]; `block_size`, which is 8, 16, 32 or 64, divides K.

    Returns:
        [..., K], of X's type.
    """
    size = op.Reshape(attribute(op, "block_size"), [1])
    return op.CastLike(rotated(op, X, size), X)


def rotated(op: OpBuilder, X: ir.Value, size: ir.Value, *, back: bool = False) -> ir.Value:
    """XR of [..., K], or XRᵀ, as float32, in blocks of `size`, int64 [1]; blocks of 1 leave X as it is."""
    rows, count = op.Shape(X, end=-1), op.Div(op.Shape(X, start=-1), size)
    blocks = op.Reshape(as_float(op, X), op.Concat(rows, count, size, axis=0), allowzero=1)
    block = op.Slice(_largest_block(op), [0, 0], op.Concat(size, size, axis=0))
    if back:
        block = op.Transpose(block, perm=[1, 0])
    scale = op.Reciprocal(op.Sqrt(as_float(op, size)))
    # not the shape of X itself: beside a library without this operator, onnxruntime takes its open sizes for -1
    shape = op.Concat(rows, op.Mul(count, size), axis=0)
    return op.Reshape(op.Mul(op.MatMul(blocks, block), scale), shape, allowzero=1)


def block_size_of(op: OpBuilder, K: ir.Value) -> ir.Value:
    """`formats.block_size` of an int64 [1]."""
    size = op.Min(op.BitwiseAnd(K, op.Neg(K)), [LARGEST_BLOCK])
    return op.Where(op.Less(size, [SMALLEST_BLOCK]), [1], size)


def _largest_block(op: OpBuilder) -> ir.Value:
    """D H, float32 [64, 64]: 1 or -1 by the parity of the bits that row and column have in common."""
    numbers = op.Cast(op.Range(0, LARGEST_BLOCK, 1), to=ir.DataType.UINT8)
    parity = op.BitwiseAnd(op.Unsqueeze(numbers, [1]), numbers)
    for shift in (4, 2, 1):
        parity = op.BitwiseXor(parity, op.BitShift(parity, op.Cast(shift, to=ir.DataType.UINT8), direction="RIGHT"))
    odd = as_float(op, op.BitwiseAnd(parity, op.Cast(1, to=ir.DataType.UINT8)))
    D = op.Constant(value_floats=[float(sign) for sign in signs()])
    return op.Mul(op.Sub(1.0, op.Mul(odd, 2.0)), op.Unsqueeze(D, [1]))
