"""Codes to bytes, in the layouts that kernels and formats of files read: a module for each layout."""

from __future__ import annotations

from qxcompiler.packing.elements import element_bytes, element_type, elements, in_bytes
from qxcompiler.packing.nbits import nbits, nbits_bytes, nbits_shapes
from qxcompiler.packing.tile16 import (
    LAYOUT,
    PackedWeight,
    bits_per_weight,
    pack,
    packed_bytes,
    unpack,
    unpack_codes,
    unpack_grid,
)

__all__ = [
    "LAYOUT",
    "PackedWeight",
    "bits_per_weight",
    "element_bytes",
    "element_type",
    "elements",
    "in_bytes",
    "nbits",
    "nbits_bytes",
    "nbits_shapes",
    "pack",
    "packed_bytes",
    "unpack",
    "unpack_codes",
    "unpack_grid",
]
