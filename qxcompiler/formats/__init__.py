"""Weight formats: a new family is a module with a `Format` and a `Grid`, and a line in `registry`."""

from __future__ import annotations

from qxcompiler.formats.base import GROUP_SIZES, Format, Grid, QuantizedWeight
from qxcompiler.formats.codebook import CODEBOOK_BITS, CodebookFormat, CodebookGrid
from qxcompiler.formats.integer import INTEGER_BITS, IntegerFormat, IntegerGrid
from qxcompiler.formats.registry import parse_format
from qxcompiler.formats.scheme import ACTIVATIONS, Scheme, check_activation

__all__ = [
    "ACTIVATIONS",
    "CODEBOOK_BITS",
    "GROUP_SIZES",
    "INTEGER_BITS",
    "CodebookFormat",
    "CodebookGrid",
    "Format",
    "Grid",
    "IntegerFormat",
    "IntegerGrid",
    "QuantizedWeight",
    "Scheme",
    "check_activation",
    "parse_format",
]
