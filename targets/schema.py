"""The hardware descriptor: what a target can hold and multiply, what it consists of, and what it prefers."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from qxcompiler.dialects import DIALECTS, Dialect
from qxcompiler.errors import TargetError, UnsupportedByTargetError
from qxcompiler.formats import CodebookFormat, Float8Format, Format, IntegerFormat, MxFormat, Scheme
from qxcompiler.targets.hardware import (
    ComputeUnit,
    Cycles,
    Dma,
    Hertz,
    Measured,
    MemoryLevel,
    MemoryMode,
    Name,
    Operators,
    VectorUnit,
)
from qxcompiler.targets.numerics import (
    Activations,
    CodebookSupport,
    Float8Support,
    IntegerSupport,
    MxFormats,
    Preferred,
    Section,
)

__all__ = ["COST_SECTIONS", "Target", "target_json_schema"]

COST_SECTIONS = (
    "core_clock_hz",
    "compute_units",
    "vector_unit",
    "memory",
    "memory_mode",
    "dma",
    "operator_overhead_cycles",
)
"""What a descriptor must have for its costs to be predicted."""


class Target(Section):
    """A hardware descriptor."""

    name: Annotated[str, Field(min_length=1)]
    """What it is called."""
    description: str
    """One line for people."""
    inherit: str | None = None
    """A target, by name, or a file beside this one, whose fields hold where this one says nothing; null removes one."""
    dialect: Literal["qxc", "qdq", "contrib"]
    """The operators that its runtime or compiler takes: `qxc`, the packed operators of this project; `qdq`, the
    standard's DequantizeLinear; `contrib`, onnxruntime's MatMulNBits and GatherBlockQuantized."""
    activations: Activations
    """The precisions it multiplies in: `a32` is float, `a16` within 5e-5 of it, `a8` int8 with a scale a token."""
    kv_cache: list[Literal["float32", "float16", "bfloat16", "float8e4m3", "float8e5m2", "int8", "int4"]] = Field(
        default=["float32"]
    )
    """What keys and values that a model keeps may be held as, the usual one first."""
    integer: IntegerSupport | None = None
    """The uniform weight formats it decodes, if any."""
    codebook: CodebookSupport | None = None
    """The look-up-table formats it decodes, if any."""
    mx: MxFormats | None = None
    """The microscaling formats it decodes, if any."""
    float8: Float8Support | None = None
    """The float8 formats with scales of other kinds that it decodes, if any."""
    others: list[str] | None = None
    """Formats of other kinds, which packages add, by name."""
    hadamard: bool = False
    """Whether it rotates activations by Hadamard matrices, for weights with rotated inputs (`lut3g128h`)."""
    preferred: Preferred
    """The schemes chosen where the user asks for none."""

    core_clock_hz: Hertz | None = None
    """The clock that every field in cycles counts."""
    compute_units: Annotated[dict[Name, ComputeUnit], Field(min_length=1, max_length=16)] | None = None
    """What multiplies, by name."""
    vector_unit: VectorUnit | None = None
    """What decodes weights and computes what is no product."""
    memory: Annotated[dict[Name, MemoryLevel], Field(min_length=1, max_length=16)] | None = None
    """The memories, by name."""
    memory_mode: MemoryMode | None = None
    """Which memory holds what."""
    dma: Dma | None = None
    """How data moves between them."""
    operator_overhead_cycles: Cycles | None = None
    """What starting an operator costs."""
    operators: Operators = Operators()
    """Which ONNX operators it lacks, and what runs them."""
    measured: Measured | None = None
    """Rates measured on a machine, which go before what follows from the rest."""

    @model_validator(mode="after")
    def _memories(self) -> Self:
        levels = self.memory or {}
        for name, level in levels.items():
            if level.below is not None and level.below not in levels:
                raise _wrong(f"memory.{name}.below", f"there is no {level.below}, only {', '.join(levels)}")
        for name in levels:
            self._chain(name)
        mode = self.memory_mode
        if mode is None:
            return self
        for use in ("cache", "weights", "activations", "kv_cache"):
            named = getattr(mode, use)
            if named not in levels:
                raise _wrong(f"memory_mode.{use}", f"there is no memory {named}, only {', '.join(levels) or 'none'}")
            if named not in (reached := self._chain(mode.cache)):
                problem = f"{mode.cache} is not filled from {named}, only from {', '.join(reached)}"
                raise _wrong(f"memory_mode.{use}", problem)
        if mode.cache_size_bytes is not None and mode.cache_size_bytes > levels[mode.cache].size_bytes:
            raise _wrong("memory_mode.cache_size_bytes", f"is more than memory.{mode.cache}.size_bytes")
        return self

    def _chain(self, name: str) -> list[str]:
        """A level and those below it."""
        levels = self.memory or {}
        chain = [name]
        while (below := levels[chain[-1]].below) is not None:
            if below in chain:
                circle = " -> ".join([*chain, below])
                raise _wrong(f"memory.{chain[-1]}.below", f"levels are below each other ({circle})")
            chain.append(below)
        return chain

    def path(self, home: str) -> list[str]:
        """The levels that data passes from where it lies up to `memory_mode.cache`, the farthest first."""
        assert self.memory_mode is not None
        chain = self._chain(self.memory_mode.cache)
        return chain[chain.index(home) :: -1]

    @property
    def emits(self) -> Dialect:
        """What its dialect can hold."""
        return DIALECTS[self.dialect]

    def check(self, scheme: Scheme) -> None:
        """Make sure that the target can run a scheme.

        Raises:
            UnsupportedByTargetError: it cannot; the message says what it can do.
        """
        if not self._holds(scheme.format):
            supports = (self.integer, self.codebook, self.float8, ", ".join([*(self.mx or []), *(self.others or [])]))
            held = "; ".join(str(support) for support in supports if support)
            raise UnsupportedByTargetError(
                f"target {self.name}", f"cannot hold weights as {scheme.format.name}", f"choose from: {held}"
            )
        if scheme.format.rotated and not self.hadamard:
            raise UnsupportedByTargetError(
                f"target {self.name}", f"cannot rotate activations, as {scheme.format.name} needs it", "leave out the h"
            )
        if scheme.activation is not None and scheme.activation not in self.activations:
            raise UnsupportedByTargetError(
                f"target {self.name}",
                f"cannot multiply activations as {scheme.activation}",
                f"choose from: {', '.join(self.activations)}",
            )
        if lacking := self.emits.lacks(scheme):
            raise UnsupportedByTargetError(f"target {self.name}", *lacking)

    def check_cost(self) -> None:
        """Make sure that costs on the target can be predicted.

        Raises:
            TargetError: the descriptor lacks a section; the message names it.
        """
        for section in COST_SECTIONS:
            if getattr(self, section) is None:
                problem = f"has no section `{section}`, without which no cost can be predicted"
                raise TargetError(f"target {self.name}", problem, "add it (docs/targets.md)")

    def _holds(self, fmt: Format) -> bool:
        if isinstance(fmt, IntegerFormat):
            return self.integer is not None and self.integer.holds(fmt)
        if isinstance(fmt, CodebookFormat):
            return self.codebook is not None and self.codebook.holds(fmt)
        if isinstance(fmt, Float8Format):
            return self.float8 is not None and self.float8.holds(fmt)
        if isinstance(fmt, MxFormat):
            return self.mx is not None and replace(fmt, rotated=False).name in self.mx
        return replace(fmt, rotated=False).name in (self.others or [])


def _wrong(field: str, problem: str) -> PydanticCustomError:
    """A field that does not fit the others; the field is named in the error's context."""
    return PydanticCustomError("misfit", "{problem}", {"problem": problem, "field": field})


def target_json_schema() -> dict[str, Any]:
    """The JSON Schema of a descriptor's file, for editors. A file that inherits may leave out any field."""
    schema = Target.model_json_schema()
    for definition in schema["$defs"].values():
        definition.pop("required", None)
    schema["anyOf"] = [{"required": ["inherit"]}, {"required": schema.pop("required")}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
