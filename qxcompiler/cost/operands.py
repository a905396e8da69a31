"""On which unit of a target, and as what, a product can be multiplied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from qxcompiler.formats import SMALL_FLOATS, STATIC, Format, Scheme
from qxcompiler.targets import Target
from qxcompiler.targets.hardware import Array, split_pair

__all__ = ["VECTOR_UNIT", "Way", "ways", "ways_between_activations"]

VECTOR_UNIT = "vector unit"

# What an activation of a precision fits into, the narrowest first.
_FITS = {
    "a8": ("int8", "mxint8", "mxfp8", "fp8", "int16", "fp16", "bf16", "fp32"),
    STATIC: ("int8", "int16", "fp16", "bf16", "fp32"),
    "a16": ("int16", "fp16", "fp32"),
    "a32": ("fp32", "fp16", "bf16"),
}
_FLOATS = ("fp32", "fp16", "bf16")
_LOOK_UP = "look-up-table"
_ENTRY_BITS = 8  # of a codebook
# Of a small float as an integer, in units of the smallest: sign and magnitude.
_FLOAT_BITS = {
    element.code_type: 1 + int(element.magnitudes[-1] / element.magnitudes[1]).bit_length() for element in SMALL_FLOATS
}


class Way(NamedTuple):
    """One way to compute a product.

    Attributes:
        unit: its name.
        copies: how many such units share the product.
        macs_per_cycle: of one of them.
        mac_energy_pj: None where it is not known.
        array: its shape, if it is systolic.
        decode_rate: weights decoded a cycle before they are multiplied; None where they are multiplied as they are.
    """

    unit: str
    copies: int
    macs_per_cycle: float
    mac_energy_pj: float | None
    array: Array | None
    decode_rate: float | None


def ways(target: Target, scheme: Scheme | None) -> Iterator[Way]:
    """The ways to multiply activations with constant weights; a scheme of None is a product in float."""
    fits = _FITS[scheme.activation or "a32"] if scheme else _FITS["a32"]
    for name, unit in (target.compute_units or {}).items():
        for pair, rate in unit.macs_per_cycle.items():
            weights, activations = split_pair(pair)
            if activations not in fits:
                continue
            energy = unit.mac_energy_pj.get(pair)
            if scheme is None:
                if weights in _FLOATS:
                    yield Way(name, unit.count, rate, energy, unit.array, None)
                continue
            fmt = scheme.format
            passes = 1
            if unit.kind == "bit-serial":
                if not _is_integer(fmt):
                    continue
                passes, decode = fmt.bits, None
            elif _as_they_are(fmt, weights, look_up=unit.kind == _LOOK_UP):
                decode = None
            elif (decode := _decode_rate(target, fmt)) is None or not _holds(weights, fmt):
                continue
            yield Way(name, unit.count, rate / passes, energy and energy * passes, unit.array, decode)
    vector = target.vector_unit
    assert vector is not None
    if vector.operand in fits and vector.operand in _FLOATS:
        decode = _decode_rate(target, scheme.format) if scheme else None
        if scheme is None or decode is not None:
            yield Way(VECTOR_UNIT, 1, vector.values_per_cycle, vector.value_energy_pj, None, decode)


def ways_between_activations(target: Target) -> Iterator[Way]:
    """The ways to multiply activations with activations, as attention does: in float, or int8 if caches usually are."""
    allowed = {*_FLOATS, *(["int8"] if target.kv_cache[:1] == ["int8"] else [])}
    for name, unit in (target.compute_units or {}).items():
        for pair, rate in unit.macs_per_cycle.items():
            if set(split_pair(pair)) <= allowed:
                yield Way(name, unit.count, rate, unit.mac_energy_pj.get(pair), unit.array, None)
    vector = target.vector_unit
    assert vector is not None
    if vector.operand in allowed:
        yield Way(VECTOR_UNIT, 1, vector.values_per_cycle, vector.value_energy_pj, None, None)


def _is_integer(fmt: Format) -> bool:
    return fmt.code_type in ("Int", "UInt")


def _as_they_are(fmt: Format, weights: str, *, look_up: bool) -> bool:
    """Whether a unit takes the codes themselves."""
    if weights.startswith("lut"):
        return (look_up or fmt.code_type == "Lut") and int(weights[3:]) == fmt.bits
    if weights.startswith("mx"):
        if fmt.name.startswith(weights):
            return True
        # int8 in blocks of 32 under a power of two is MXINT8; narrower floats are among the wider ones
        is_mxint8 = _is_integer(fmt) and fmt.bits == 8 and fmt.group_size == 32 and fmt.scale_type.suffix == "e8"
        return is_mxint8 if weights == "mxint8" else fmt.name.startswith("mxfp") and int(weights[4:]) >= fmt.bits
    if weights == "fp8":
        return fmt.name.startswith("fp8")
    return _is_integer(fmt) and weights == f"int{fmt.bits}"


def _holds(weights: str, fmt: Format) -> bool:
    """Whether decoded weights fit: codes and entries of a codebook are integers, and small floats multiples of one."""
    if weights in _FLOATS:
        return True
    bits = {"int4": 4, "int5": 5, "int6": 6, "int8": 8, "int16": 16}.get(weights, 0)
    return bits >= (fmt.bits if _is_integer(fmt) else _FLOAT_BITS.get(fmt.code_type, _ENTRY_BITS))


def _decode_rate(target: Target, fmt: Format) -> float | None:
    vector = target.vector_unit
    assert vector is not None
    if fmt.code_type == "Lut" and (vector.table_entries < 1 << fmt.bits or vector.table_width_bits < _ENTRY_BITS):
        return None
    rates = vector.dequantization_values_per_cycle
    family = {"Int": "int", "UInt": "int", "Lut": "lut"}.get(fmt.code_type)
    if family is None:
        family = "mx" if fmt.name.startswith("mx") else "fp" if fmt.name.startswith("fp") else "others"
    return rates.get(f"{family}{fmt.bits}", rates.get(family))
