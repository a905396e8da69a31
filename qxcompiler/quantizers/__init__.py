"""Quantizers: algorithms that turn a weight and its input's statistics into codes of a format."""

from __future__ import annotations

from qxcompiler.quantizers.blockwise import (
    QuantizationResult,
    quantize_blockwise,
    quantize_without_statistics,
)
from qxcompiler.quantizers.registry import QUANTIZERS, Quantizer, find_quantizer

__all__ = [
    "QUANTIZERS",
    "QuantizationResult",
    "Quantizer",
    "find_quantizer",
    "quantize_blockwise",
    "quantize_without_statistics",
]
