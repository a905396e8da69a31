"""The formats that a layer may get where a budget chooses."""

from __future__ import annotations

__all__ = ["candidates", "of_other_bits"]

from dataclasses import replace

from qxcompiler.errors import UnsupportedByTargetError
from qxcompiler.formats import (
    TWO_LEVEL,
    CodebookFormat,
    Format,
    IntegerFormat,
    MxFormat,
    Scheme,
    TernaryFormat,
    parse_format,
)
from qxcompiler.targets import Target

_SMALL, _LARGE = 32, 128  # of groups: beside the target's own, these two pay most (docs/allocation.md)


def candidates(target: Target) -> list[Format]:
    """What the target holds and is worth comparing, where the user names no format.

    In every number of bits a codebook, or integers where the target has none of so many bits; in groups as the target
    prefers them, of 32 and of 128. Groups of 32 have two-level scales where the target reads those. A target that
    prefers microscaling formats, or one that a package adds, chooses among these.
    """
    preferred = target.preferred.linear.format
    if isinstance(preferred, MxFormat):
        return [parse_format(name) for name in target.mx or []]
    if not isinstance(preferred, (IntegerFormat, CodebookFormat)):
        return [preferred]
    tables = dict.fromkeys(sorted(target.codebook.bits), True) if target.codebook else {}
    bits = tables | {
        each: False for each in sorted(target.integer.bits if target.integer else []) if each not in tables
    }
    found: dict[str, Format] = {}
    for count, is_table in sorted(bits.items()):
        for size in dict.fromkeys((preferred.group_size, _LARGE, _SMALL)):
            forms: list[Format] = [
                CodebookFormat(count, size, per_tensor=per_tensor) if is_table else IntegerFormat(count, size)
                for per_tensor in ((False, True) if is_table else (False,))
            ]
            if size is not None and size <= _SMALL:
                forms = [*(replace(form, scale_type=TWO_LEVEL) for form in forms), *forms]
            if held := [form for form in forms if _holds(target, form)]:
                found.setdefault(held[0].name, held[0])
    return [*found.values()]


def of_other_bits(fmt: Format, target: Target) -> list[Format]:
    """The format in every number of bits that the target holds, itself among them."""
    if isinstance(fmt, IntegerFormat) and target.integer:
        return [replace(fmt, bits=bits) for bits in sorted(target.integer.bits)]
    has_free_table = isinstance(fmt, CodebookFormat) and not (fmt.normal_float or isinstance(fmt, TernaryFormat))
    if has_free_table and target.codebook:
        return [replace(fmt, bits=bits) for bits in sorted(target.codebook.bits)]
    return [fmt]


def _holds(target: Target, fmt: Format) -> bool:
    try:
        target.check(Scheme(fmt, None))
    except UnsupportedByTargetError:
        return False
    return True
