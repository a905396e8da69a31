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

_ROTATED_GROUP = 64
_GROUPS = (128, 32)  # beside the target's own, these pay (docs/allocation.md)


def candidates(target: Target) -> list[Format]:
    """What the target holds and is worth comparing, where the user names no format.

    In every number of bits a codebook, or integers where the target has none of so many bits; in groups as the target
    prefers them, of 128 and of 32; with two-level scales where the target reads those, which are as good in half the
    bytes. Where the target rotates activations, also a codebook a tensor for rotated inputs, in groups of 64 (QuIP#'s
    incoherence: all rows are alike then). A target that prefers microscaling formats gets these, and one that prefers
    float8 or a package's format gets that.
    """
    preferred = target.preferred.linear.format
    if isinstance(preferred, MxFormat):
        return [parse_format(name) for name in target.mx or []]
    if not isinstance(preferred, (IntegerFormat, CodebookFormat)):
        return [preferred]
    tables = set(target.codebook.bits) if target.codebook else set()
    integers = set(target.integer.bits) if target.integer else set()
    found: list[Format] = []
    for bits in sorted(tables | integers):
        for size in dict.fromkeys((preferred.group_size, *_GROUPS)):
            forms: list[Format] = (
                [CodebookFormat(bits, size), CodebookFormat(bits, size, per_tensor=True)]
                if bits in tables
                else [IntegerFormat(bits, size)]
            )
            forms = [*(replace(form, scale_type=TWO_LEVEL) for form in forms), *forms]
            found += [form for form in forms if _holds(target, form)][:1]
        if bits in tables:
            rotated = CodebookFormat(bits, _ROTATED_GROUP, per_tensor=True, rotated=True)
            forms = [replace(rotated, scale_type=TWO_LEVEL), rotated]
            found += [form for form in forms if _holds(target, form)][:1]
    return found


def of_other_bits(fmt: Format, target: Target) -> list[Format]:
    """The format in every number of bits that the target holds, itself among them."""
    if isinstance(fmt, IntegerFormat) and target.integer:
        found: list[Format] = [replace(fmt, bits=bits) for bits in sorted(target.integer.bits)]
        return [each for each in found if not target.emits.lacks(Scheme(each, None))] or found
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
