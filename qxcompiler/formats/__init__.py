"""Weight formats: a new family is a module with a `Format` and a `Grid`, and a line in `registry`."""

from __future__ import annotations

from qxcompiler.formats.base import GROUP_SIZES, Format, Grid, QuantizedWeight, operator_suffix
from qxcompiler.formats.cache import CACHE_FORMATS, LEAST_SCALE, NAN_SCALE, SCALE_BYTES, CacheFormat
from qxcompiler.formats.codebook import CODEBOOK_BITS, LARGEST_ENTRY, CodebookFormat, CodebookGrid
from qxcompiler.formats.floats import FLOAT8_ELEMENTS, SMALL_FLOATS, Float8Format, FloatGrid, SmallFloat
from qxcompiler.formats.integer import INTEGER_BITS, IntegerFormat, IntegerGrid
from qxcompiler.formats.mx import MX_FORMATS, MxFloatFormat, MxFormat, MxInt8Format
from qxcompiler.formats.registry import parse_format
from qxcompiler.formats.rotation import LARGEST_BLOCK, SMALLEST_BLOCK, block_size, hadamard, rotate, rotate_back, signs
from qxcompiler.formats.scales import E8M0, E8M0_VALUES, FLOAT16, ROW_SCALE_STEPS, SCALE_TYPES, TWO_LEVEL, ScaleType
from qxcompiler.formats.scheme import ACTIVATIONS, KERNEL_ACTIVATIONS, STATIC, Scheme, check_activation
from qxcompiler.formats.ternary import TernaryFormat

__all__ = [
    "ACTIVATIONS",
    "CACHE_FORMATS",
    "CODEBOOK_BITS",
    "E8M0",
    "E8M0_VALUES",
    "FLOAT8_ELEMENTS",
    "FLOAT16",
    "GROUP_SIZES",
    "INTEGER_BITS",
    "KERNEL_ACTIVATIONS",
    "LARGEST_BLOCK",
    "LARGEST_ENTRY",
    "LEAST_SCALE",
    "MX_FORMATS",
    "NAN_SCALE",
    "ROW_SCALE_STEPS",
    "SCALE_BYTES",
    "SCALE_TYPES",
    "SMALLEST_BLOCK",
    "SMALL_FLOATS",
    "STATIC",
    "TWO_LEVEL",
    "CacheFormat",
    "CodebookFormat",
    "CodebookGrid",
    "Float8Format",
    "FloatGrid",
    "Format",
    "Grid",
    "IntegerFormat",
    "IntegerGrid",
    "MxFloatFormat",
    "MxFormat",
    "MxInt8Format",
    "QuantizedWeight",
    "ScaleType",
    "Scheme",
    "SmallFloat",
    "TernaryFormat",
    "block_size",
    "check_activation",
    "hadamard",
    "operator_suffix",
    "parse_format",
    "rotate",
    "rotate_back",
    "signs",
]
