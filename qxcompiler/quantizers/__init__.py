"""Quantizers: algorithms that turn a weight and its input's statistics into codes of a format."""

from __future__ import annotations

from qxcompiler.quantizers.registry import QUANTIZERS, Need, Quantizer, find_quantizer
from qxcompiler.quantizers.segmentwise import (
    Keep,
    QuantizationResult,
    quantize_segmentwise,
    quantize_weights,
    quantize_without_statistics,
    sharing_a_table,
)

__all__ = [
    "QUANTIZERS",
    "Keep",
    "Need",
    "QuantizationResult",
    "Quantizer",
    "find_quantizer",
    "quantize_segmentwise",
    "quantize_weights",
    "quantize_without_statistics",
    "sharing_a_table",
]
