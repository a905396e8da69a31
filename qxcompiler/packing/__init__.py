"""Codes to bytes, in the layouts that the kernels read: a module for each layout."""

from __future__ import annotations

from qxcompiler.packing.tile16 import LAYOUT, PackedWeight, bits_per_weight, pack, packed_bytes, unpack, unpack_codes

__all__ = ["LAYOUT", "PackedWeight", "bits_per_weight", "pack", "packed_bytes", "unpack", "unpack_codes"]
