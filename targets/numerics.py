"""What a target can hold, multiply and prefer: the numerics of a hardware descriptor."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic.functional_validators import BeforeValidator

from qxcompiler.errors import QxcError
from qxcompiler.formats import (
    ACTIVATIONS,
    CODEBOOK_BITS,
    FLOAT8_ELEMENTS,
    GROUP_SIZES,
    INTEGER_BITS,
    MX_FORMATS,
    SCALE_TYPES,
    CodebookFormat,
    Float8Format,
    Format,
    IntegerFormat,
    Scheme,
)

__all__ = [
    "Activations",
    "CodebookSupport",
    "Float8Support",
    "IntegerSupport",
    "MxFormats",
    "Preferred",
    "SchemeName",
    "Section",
]


class Section(BaseModel):
    """A part of a descriptor: every field is known, and the comment under a field is its description."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True, use_attribute_docstrings=True)


def some_of(allowed: tuple[Any, ...]) -> tuple[Any, ...]:
    """What checks a list against allowed values, and shows them in the JSON Schema."""

    def check(values: list[Any]) -> list[Any]:
        if not values or not set(values) <= set(allowed):
            raise ValueError(f"must list some of {', '.join(map(str, allowed))}")
        return values

    return AfterValidator(check), Field(json_schema_extra={"items": {"enum": list(allowed)}, "minItems": 1})


def _parse_scheme(value: Any) -> Any:
    try:
        return Scheme.parse(value) if isinstance(value, str) else value
    except QxcError as error:
        raise ValueError(str(error)) from error


SchemeName = Annotated[
    Scheme,
    BeforeValidator(_parse_scheme),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "examples": ["int4g32/a8", "int8g128"]}),
]


def _multiplies(scheme: Scheme) -> Scheme:
    if scheme.activation is None:
        raise ValueError(f"{scheme} has no activation precision, write {scheme}/a8")
    return scheme


def _looks_up(scheme: Scheme) -> Scheme:
    if scheme.activation is not None:
        raise ValueError(f"an embedding multiplies nothing, write {scheme.format.name} without /{scheme.activation}")
    return scheme


_SCALES = {suffix or "float16": scale_type for suffix, scale_type in SCALE_TYPES.items()}
_Scales = Annotated[list[str], *some_of(tuple(_SCALES))]
_GroupSizes = Annotated[list[int | Literal["row"]], *some_of((*GROUP_SIZES, "row"))]
Activations = Annotated[list[str], *some_of(ACTIVATIONS)]
MxFormats = Annotated[list[str], *some_of(tuple(MX_FORMATS))]


class IntegerSupport(Section):
    """Which uniform formats the target decodes."""

    bits: Annotated[list[int], *some_of(INTEGER_BITS)]
    """Bits of a code."""
    group_sizes: _GroupSizes
    """How many columns may share a scale; `row` for one scale a row."""
    zero_points: bool
    """Whether it takes asymmetric weights (`int4g32a`)."""
    scales: _Scales = ["float16"]
    """How scales may be stored: `s8` is 8 bits under a float16 a row, `e8` powers of two."""

    def holds(self, fmt: IntegerFormat) -> bool:
        """Whether a format is among them."""
        return fmt.bits in self.bits and _shares_scales(self, fmt) and (self.zero_points or not fmt.asymmetric)

    def __str__(self) -> str:
        zero_points = ", with or without zero points (a)" if self.zero_points else ", without zero points"
        scales = f", scales {_listed(self.scales)}"
        return f"int {_listed(self.bits)} bits in groups of {_listed(self.group_sizes)}{zero_points}{scales}"


class CodebookSupport(Section):
    """Which look-up-table formats the target decodes."""

    bits: Annotated[list[int], *some_of(CODEBOOK_BITS)]
    """Bits of a code; ternary takes 2, nf4 takes 4."""
    group_sizes: _GroupSizes
    """How many columns may share a scale; `row` for one scale a row."""
    per_row: bool
    """Whether each row may have a table of its own; if not, one a tensor (`lut3g128t`, `nf4g64`)."""
    scales: _Scales = ["float16"]
    """How scales may be stored."""

    def holds(self, fmt: CodebookFormat) -> bool:
        """Whether a format is among them."""
        per_row = not (fmt.per_tensor or fmt.normal_float)
        return fmt.bits in self.bits and _shares_scales(self, fmt) and (self.per_row or not per_row)

    def __str__(self) -> str:
        tables = "a table a row or a tensor (t)" if self.per_row else "a table a tensor (t)"
        scales = f", scales {_listed(self.scales)}"
        return f"lut {_listed(self.bits)} bits in groups of {_listed(self.group_sizes)}, {tables}{scales}"


class Float8Support(Section):
    """Which float8 formats the target decodes, besides microscaling ones."""

    elements: Annotated[list[str], *some_of(tuple(FLOAT8_ELEMENTS))]
    """Kinds of float8: `e4m3`, `e5m2`."""
    group_sizes: _GroupSizes
    """How many columns may share a scale; `row` for one scale a row."""
    scales: _Scales = ["float16"]
    """How scales may be stored."""

    def holds(self, fmt: Float8Format) -> bool:
        """Whether a format is among them."""
        return fmt.element in [FLOAT8_ELEMENTS[name] for name in self.elements] and _shares_scales(self, fmt)

    def __str__(self) -> str:
        return f"fp8 {_listed(self.elements)} in groups of {_listed(self.group_sizes)}, scales {_listed(self.scales)}"


def _shares_scales(support: IntegerSupport | CodebookSupport | Float8Support, fmt: Format) -> bool:
    """Whether a format's groups and their scales are among those supported."""
    scale_types = [_SCALES[name] for name in support.scales]
    return (fmt.group_size or "row") in support.group_sizes and fmt.scale_type in scale_types


def _listed(values: list[Any]) -> str:
    return "/".join(str(value) for value in values)


class Preferred(Section):
    """The schemes used where the user asks for none; checked against the rest of the descriptor."""

    linear: Annotated[SchemeName, AfterValidator(_multiplies)]
    """FORMAT/ACTIVATION of layers."""
    head: Annotated[SchemeName, AfterValidator(_multiplies)]
    """FORMAT/ACTIVATION of the head; its format holds for an embedding that shares its weight."""
    embedding: Annotated[SchemeName, AfterValidator(_looks_up)]
    """FORMAT of embeddings."""
    recipe: Annotated[str, Field(pattern="^[a-z][a-z0-9-]{0,31}$")] | None = None
    """The recipe whose options hold where none is given: `fast`, `balanced`, `best`."""
