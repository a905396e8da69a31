"""What a target's hardware consists of, as the cost model reads it: rates, sizes and energies, units in the names.

The words are those of Arm Vela's configuration (memory modes beside the system), Timeloop with Accelergy, and ZigZag
(array shape, dataflow, energy an access).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator
from pydantic.functional_validators import BeforeValidator

from qxcompiler.targets.numerics import SchemeName, Section

__all__ = [
    "ACTIVATION_OPERANDS",
    "OPERAND_BITS",
    "Array",
    "ComputeUnit",
    "Dma",
    "Host",
    "Measured",
    "MeasuredKernel",
    "MemoryLevel",
    "MemoryMode",
    "Operators",
    "VectorUnit",
    "split_pair",
]


def _plain(value: Any) -> Any:
    """A number; YAML 1.1 reads `1e9` as text."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    if isinstance(value, str):
        if not re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]{1,4})?", value):
            raise ValueError("must be a plain number; the unit is in the field's name")
        number = float(value)
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    return value


_PLAIN = BeforeValidator(_plain)
Hertz = Annotated[float, Field(gt=0, le=1e12), _PLAIN]
_Bandwidth = Annotated[float, Field(gt=0, le=1e16), _PLAIN]
_Rate = Annotated[float, Field(gt=0, le=1e9), _PLAIN]
_PerSecond = Annotated[float, Field(gt=0, le=1e18), _PLAIN]
Cycles = Annotated[float, Field(ge=0, le=1e9), _PLAIN]
_Seconds = Annotated[float, Field(ge=0, le=60), _PLAIN]
_Energy = Annotated[float, Field(ge=0, le=1e6), _PLAIN]
_Bytes = Annotated[int, Field(gt=0, le=2**50), _PLAIN]
_Power = Annotated[int, Field(gt=0, le=1 << 20), _PLAIN]
_Count = Annotated[int, Field(gt=0, le=1 << 16), _PLAIN]

_NAME = r"^[a-z][a-z0-9-]{0,31}$"


def _name(value: str) -> str:
    if not re.fullmatch(_NAME, value):
        raise ValueError("a name has small letters, digits and hyphens, 32 at most")
    return value


Name = Annotated[str, AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": _NAME})]


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError("must be a power of two")
    return value


_PowerOfTwo = Annotated[_Power, AfterValidator(_power_of_two)]

ACTIVATION_OPERANDS = {
    "int8": 8, "int16": 16, "fp8": 8, "mxint8": 8, "mxfp8": 8, "fp16": 16, "bf16": 16, "fp32": 32,
}  # fmt: skip
"""What activations may be multiplied as, and their bits."""

OPERAND_BITS = ACTIVATION_OPERANDS | {
    **{f"int{bits}": bits for bits in (1, 2, 3, 4, 5, 6)},
    **{f"lut{bits}": bits for bits in (2, 3, 4)},
    "mxfp4": 4,
    "mxfp6": 6,
}
"""What weights may be multiplied as, and their bits."""


def split_pair(pair: str) -> tuple[str, str]:
    """Weights and activations of `int4 x int8`."""
    weights, _, activations = pair.partition(" x ")
    return weights, activations


def _check_pair(pair: str) -> str:
    weights, activations = split_pair(pair)
    if weights not in OPERAND_BITS or activations not in ACTIVATION_OPERANDS:
        raise ValueError(
            f"must be WEIGHTS x ACTIVATIONS with weights of {', '.join(OPERAND_BITS)} and activations of "
            f"{', '.join(ACTIVATION_OPERANDS)}"
        )
    return pair


_PAIR = f"^({'|'.join(OPERAND_BITS)}) x ({'|'.join(ACTIVATION_OPERANDS)})$"
Pair = Annotated[str, AfterValidator(_check_pair), WithJsonSchema({"type": "string", "pattern": _PAIR})]


class Array(Section):
    """A systolic array: what each of its sides spans depends on the dataflow."""

    rows: _Count
    """Processing elements down a column."""
    columns: _Count
    """Processing elements along a row."""
    dataflow: Literal["output-stationary", "weight-stationary", "input-stationary"]
    """What stays in a processing element while the others pass."""


class ComputeUnit(Section):
    """What multiplies and adds."""

    kind: Literal["multiplier-array", "look-up-table", "bit-serial", "block-scaled"]
    """`look-up-table` reads products of groups of activations from a table, by the weight's code. `bit-serial` takes a
    weight of b bits in b passes: its rates are those of one bit (`int1`). `block-scaled` multiplies MX operands."""
    count: _Count = 1
    """How many of them share a product, by its output features: cores, or copies."""
    macs_per_cycle: Annotated[dict[Pair, _Rate], Field(min_length=1, max_length=64)]
    """Multiply-accumulates a cycle of one unit, by WEIGHTS x ACTIVATIONS as they are multiplied. Where fewer bits save
    bandwidth but no multiplications, only the wide operands stand here, and `vector_unit` decodes."""
    mac_energy_pj: Annotated[dict[Pair, _Energy], Field(max_length=64)] = Field(default={})
    """Energy of one multiply-accumulate, by the same pairs."""
    array: Array | None = None
    """The shape of a systolic array; without it, utilisation is taken as whole."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if unknown := set(self.mac_energy_pj) - set(self.macs_per_cycle):
            raise ValueError(f"mac_energy_pj has {min(unknown)!r}, which macs_per_cycle has not")
        serial = [pair for pair in self.macs_per_cycle if split_pair(pair)[0] == "int1"]
        if (self.kind == "bit-serial") != bool(serial) or (serial and len(serial) != len(self.macs_per_cycle)):
            raise ValueError("a unit of kind bit-serial has rates of `int1 x ...` and no others; other kinds have none")
        return self


_FAMILY = re.compile(r"(int|lut|mx|fp)[2-8]?|others")


def _check_family(family: str) -> str:
    if not _FAMILY.fullmatch(family):
        raise ValueError("must be int, lut or mx, with bits or without (int, int3, lut4), fp or others")
    return family


Family = Annotated[
    str, AfterValidator(_check_family), WithJsonSchema({"type": "string", "pattern": f"^({_FAMILY.pattern})$"})
]


class VectorUnit(Section):
    """What decodes weights, and computes all that is not a product."""

    operand: Literal["int8", "int16", "fp16", "bf16", "fp32"]
    """What values between operators are held as."""
    values_per_cycle: _Rate
    """Elementwise results a cycle."""
    dequantization_values_per_cycle: Annotated[dict[Family, _Rate], Field(max_length=32)] = Field(default={})
    """Weights decoded a cycle to what the compute units take, by family (`int`, `lut`, `mx`) or by family and bits
    (`int3`), which go before it. A family that is not here cannot be decoded, only multiplied as it is."""
    overlaps_compute: bool = True
    """Whether it works while the compute units do."""
    value_energy_pj: _Energy | None = None
    """Energy of one result, or of one weight decoded."""
    table_entries: Annotated[int, Field(ge=0, le=1 << 16), _PLAIN] = 0
    """Entries of a look-up table; 0 for none. A codebook of b bits needs `2**b`."""
    table_width_bits: Annotated[int, Field(ge=0, le=64), _PLAIN] = 0
    """Bits of an entry."""

    @model_validator(mode="after")
    def _tables(self) -> Self:
        if bool(self.table_entries) != bool(self.table_width_bits):
            raise ValueError("table_entries and table_width_bits go together")
        return self


class MemoryLevel(Section):
    """One memory."""

    size_bytes: _Bytes
    """What it holds."""
    bandwidth_bytes_per_second: _Bandwidth
    """What it moves, reads and writes together."""
    width_bits: Annotated[_PowerOfTwo, Field(ge=8)]
    """Width of its bus: no transfer is smaller."""
    burst_length_bytes: _PowerOfTwo = 1
    """Transfers are whole bursts of so many bytes."""
    read_latency_cycles: Cycles = 0
    """Cycles of the core's clock until the first byte of a transfer is there."""
    write_latency_cycles: Cycles = 0
    """The same, for writing."""
    read_energy_pj_per_byte: _Energy | None = None
    """Energy to read a byte."""
    write_energy_pj_per_byte: _Energy | None = None
    """Energy to write a byte."""
    below: Name | None = None
    """The level farther from the compute units that this one is filled from; none for the last."""


class MemoryMode(Section):
    """Which memory holds what (Vela's memory mode)."""

    weights: Name
    """Where weights are read from, every time."""
    activations: Name
    """Where values between operators lie if they are too large to stay in `cache`."""
    kv_cache: Name
    """Where keys and values that a model keeps lie."""
    cache: Name
    """Where tiles lie while they are computed on."""
    cache_size_bytes: _Bytes | None = None
    """How much of it may be used; all of it if left out."""


class Dma(Section):
    """How data moves between memories."""

    channels: _Count
    """Transfers that run at once: they share the latency."""
    alignment_bytes: _PowerOfTwo
    """Transfers begin and end at multiples of this."""
    overlaps_compute: bool
    """Whether data moves while the units compute; half of `cache` then holds the next tiles."""


class Host(Section):
    """A processor beside the target that runs what it cannot."""

    bandwidth_bytes_per_second: _Bandwidth
    """What it reads and writes."""
    macs_per_second: _PerSecond
    """Multiply-accumulates in float."""
    overhead_seconds: _Seconds
    """What going there and back takes, an operator."""


class Operators(Section):
    """Which ONNX operators run where."""

    lacking: Annotated[list[str], Field(max_length=1000)] = Field(default=[])
    """ONNX operators that the target cannot run."""
    host: Host | None = None
    """Where those run instead; without a host, a model that has one is not compiled, and gets no prediction."""


class MeasuredKernel(Section):
    """How fast one packed product ran."""

    scheme: SchemeName | Literal["float"]
    """FORMAT/ACTIVATION, or `float`. It serves other group sizes of the same codes where those were not measured."""
    threads: _Count = 1
    """On how many threads."""
    weights_per_second: Annotated[dict[_Count, _PerSecond], Field(min_length=1, max_length=64)]
    """Weights of the matrix passed a second while they lie in a cache, by rows of the activation (M): `{1: 4e10, 16:
    8e9}`. Time between is linear in M, and beyond the last in proportion to M."""


class Measured(Section):
    """What was measured on a machine, for a number of threads; the cost model takes it before what it computes."""

    threads: _Count
    """How many threads predictions are for."""
    read_bandwidth_bytes_per_second: Annotated[dict[_Count, _Bandwidth], Field(min_length=1, max_length=256)]
    """What weights are read with from where they lie, by number of threads."""
    operator_overhead_seconds: _Seconds
    """What an operator costs besides."""
    kernels: Annotated[list[MeasuredKernel], Field(max_length=4096)] = Field(default=[])
    """Products, by scheme, rows and threads."""

    @model_validator(mode="after")
    def _has_threads(self) -> Self:
        if self.threads not in self.read_bandwidth_bytes_per_second:
            raise ValueError(f"read_bandwidth_bytes_per_second says nothing of {self.threads} threads")
        return self
