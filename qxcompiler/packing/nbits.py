"""Codes to bytes as `MatMulNBits` and `GatherBlockQuantized` read them (onnxruntime, ContribOperators.md).

A row is a block for each group, the last filled up with zeros; a block's codes lie side by side, the lowest bits first.
"""

from __future__ import annotations

import numpy as np

from qxcompiler.formats import Format
from qxcompiler.packing.elements import in_bytes
from qxcompiler.packing.tile16 import PackedWeight, unpack, unpack_grid

__all__ = ["nbits", "nbits_bytes", "nbits_shapes"]


def nbits_shapes(fmt: Format, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
    """The shapes of `nbits`, by name."""
    N, G = out_features, fmt.groups(in_features)
    shapes: dict[str, tuple[int, ...]] = {
        "blocks": (N, G, fmt.group_length(in_features) * fmt.bits // 8),
        "scales": (N, G),
    }
    if fmt.has_zero_points:
        shapes["zero_points"] = (N, -(-G * fmt.bits // 8))
    return shapes


def nbits_bytes(fmt: Format, out_features: int, in_features: int, scale_bytes: int) -> int:
    """What a weight [N, K] takes so."""
    return sum(
        int(np.prod(shape)) * (scale_bytes if name == "scales" else 1)
        for name, shape in nbits_shapes(fmt, out_features, in_features).items()
    )


def nbits(packed: PackedWeight, name: str) -> np.ndarray:
    """One of uint8 `blocks`, float32 `scales`, uint8 `zero_points`; without these, `2**(bits-1)` stands for zero."""
    fmt = packed.format
    if name == "blocks":
        return in_bytes(fmt.grouped(unpack(packed).codes).numpy(), fmt.bits)
    grid = unpack_grid(packed)
    if name == "scales":
        return grid.scales.numpy()
    return in_bytes(grid.stored["zero_points"].numpy(), fmt.bits)
