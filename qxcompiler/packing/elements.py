"""Codes as elements of ONNX's own types, which `DequantizeLinear` reads."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from qxcompiler.formats import Format
from qxcompiler.packing.tile16 import PackedWeight, unpack

__all__ = ["element_bytes", "element_type", "elements", "in_bytes"]

_TYPES = {
    ("Int", 2): ir.DataType.INT2,
    ("Int", 4): ir.DataType.INT4,
    ("Int", 8): ir.DataType.INT8,
    ("UInt", 2): ir.DataType.UINT2,
    ("UInt", 4): ir.DataType.UINT4,
    ("UInt", 8): ir.DataType.UINT8,
    ("Fp", 4): ir.DataType.FLOAT4E2M1,
    ("E4M3", 8): ir.DataType.FLOAT8E4M3FN,
    ("E5M2", 8): ir.DataType.FLOAT8E5M2,
}


def element_type(fmt: Format) -> ir.DataType | None:
    """The type that holds a format's codes, and its zero points; None where there is none."""
    return _TYPES.get((fmt.code_type, fmt.bits))


def element_bytes(fmt: Format, out_features: int, in_features: int, scale_bytes: int) -> int:
    """What a weight [N, K] takes as elements, with its scales and zero points."""
    groups = out_features * fmt.groups(in_features)
    zero_points = groups if fmt.has_zero_points else 0
    return -(-out_features * in_features * fmt.bits // 8) + groups * scale_bytes + -(-zero_points * fmt.bits // 8)


def elements(packed: PackedWeight) -> torch.Tensor:
    """A weight's codes as elements, bit by bit: uint8 [N, K]."""
    codes = unpack(packed).codes
    # `Int` counts from 2**(bits-1): as a two's complement, that is the highest bit turned over
    return codes ^ (1 << (packed.format.bits - 1)) if packed.format.code_type == "Int" else codes


def in_bytes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes of 2, 4 or 8 bits, uint8 [..., n], side by side, the lowest bits first: uint8 [..., ceil(n bits / 8)]."""
    each = 8 // bits
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % each)])
    shifted = padded.reshape(*codes.shape[:-1], -1, each) << (bits * np.arange(each, dtype=np.uint8))
    combined: np.ndarray = np.bitwise_or.reduce(shifted, axis=-1)
    return combined
