"""Every format by its name: a new family is one entry in `_FAMILIES`.

A package adds its own by an entry point of the group `qxcompiler.formats`: a function from a name to a `Format`, or
None for a name that is none of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from qxcompiler.errors import UsageError
from qxcompiler.extensions import extensions
from qxcompiler.formats.base import GROUP_SIZES, Format
from qxcompiler.formats.codebook import CODEBOOK_BITS, CodebookFormat
from qxcompiler.formats.floats import FLOAT8_ELEMENTS, Float8Format
from qxcompiler.formats.integer import INTEGER_BITS, IntegerFormat
from qxcompiler.formats.mx import MX_FORMATS
from qxcompiler.formats.scales import SCALE_TYPES, ScaleType
from qxcompiler.formats.ternary import TernaryFormat

__all__ = ["parse_format"]


def _group(match: re.Match[str]) -> int | None:
    return int(match["group"]) if match["group"] else None


def _scales(match: re.Match[str]) -> ScaleType:
    return SCALE_TYPES[match["scales"] or ""]


_GROUP = rf"(g(?P<group>{'|'.join(map(str, GROUP_SIZES))}))?"
_SCALES = rf"(?P<scales>{'|'.join(filter(None, SCALE_TYPES))})?"
_FAMILIES: dict[str, Callable[[re.Match[str]], Format]] = {
    rf"int(?P<bits>[{''.join(map(str, INTEGER_BITS))}]){_GROUP}(?P<a>a?){_SCALES}": lambda m: IntegerFormat(
        int(m["bits"]), _group(m), _scales(m), asymmetric=bool(m["a"])
    ),
    rf"lut(?P<bits>[{''.join(map(str, CODEBOOK_BITS))}]){_GROUP}(?P<t>t?){_SCALES}": lambda m: CodebookFormat(
        int(m["bits"]), _group(m), _scales(m), per_tensor=bool(m["t"])
    ),
    rf"nf(?P<bits>4){_GROUP}{_SCALES}": lambda m: CodebookFormat(4, _group(m), _scales(m), normal_float=True),
    rf"ternary{_GROUP}{_SCALES}": lambda m: TernaryFormat(group_size=_group(m), scale_type=_scales(m)),
    rf"fp8(?P<element>{'|'.join(FLOAT8_ELEMENTS)}){_GROUP}{_SCALES}": lambda m: Float8Format(
        8, _group(m), _scales(m), element=FLOAT8_ELEMENTS[m["element"]]
    ),
    "|".join(MX_FORMATS): lambda m: MX_FORMATS[m[0]],
}


def parse_format(spec: str) -> Format:
    """Read a format's name, such as `int3g128a`, `lut3g128h`, `nf4g64` or `mxfp4`.

    Raises:
        UsageError: no format has that name.
    """
    for read in (_built_in, _added):
        if fmt := read(spec):
            return fmt
        if spec.endswith("h") and (fmt := read(spec[:-1])):
            return replace(fmt, rotated=True)
    raise UsageError(
        repr(spec),
        "not a weight format",
        f"write int<{'|'.join(map(str, INTEGER_BITS))}>, lut<{'|'.join(map(str, CODEBOOK_BITS))}>, "
        f"nf4, ternary or fp8<{'|'.join(FLOAT8_ELEMENTS)}>, then g<{'|'.join(map(str, GROUP_SIZES))}> for groups, "
        "then a (int: zero points) or t (lut: one table a tensor), then s8 (scales of 8 bits under a float16 a row) or "
        f"e8 (powers of two); or {', '.join(MX_FORMATS)}; "
        "then h for rotated inputs",
    )


def _built_in(spec: str) -> Format | None:
    for pattern, build in _FAMILIES.items():
        if match := re.fullmatch(pattern, spec):
            return build(match)
    return None


def _added(spec: str) -> Format | None:
    """Of a package."""
    for read in extensions("formats").values():
        added: Format | None = read(spec)
        if added is not None:
            return added
    return None
