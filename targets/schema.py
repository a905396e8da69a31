"""The hardware descriptor: what a target can hold and multiply, and what it prefers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, ValidationError
from pydantic.functional_validators import BeforeValidator

from qxcompiler.errors import QxcError, TargetError, UnsupportedByTargetError, first_invalid
from qxcompiler.extensions import extensions, find
from qxcompiler.formats import (
    ACTIVATIONS,
    CODEBOOK_BITS,
    GROUP_SIZES,
    INTEGER_BITS,
    MX_FORMATS,
    SCALE_TYPES,
    CodebookFormat,
    Format,
    IntegerFormat,
    MxFormat,
    Scheme,
)
from qxcompiler.yaml_files import read_yaml

__all__ = ["Target", "find_target", "load_target", "target_names"]

_FOLDER = Path(__file__).parent


def _one_of(allowed: tuple[Any, ...]) -> AfterValidator:
    def check(values: list[Any]) -> list[Any]:
        if not values or not set(values) <= set(allowed):
            raise ValueError(f"must list some of {', '.join(map(str, allowed))}")
        return values

    return AfterValidator(check)


def _parse_scheme(value: Any) -> Any:
    try:
        return Scheme.parse(value) if isinstance(value, str) else value
    except QxcError as error:
        raise ValueError(str(error)) from error


_Scheme = Annotated[Scheme, BeforeValidator(_parse_scheme), PlainSerializer(str)]


def _multiplies(scheme: Scheme) -> Scheme:
    if scheme.activation is None:
        raise ValueError(f"{scheme} has no activation precision, write {scheme}/{ACTIVATIONS[-1]}")
    return scheme


def _looks_up(scheme: Scheme) -> Scheme:
    if scheme.activation is not None:
        raise ValueError(f"an embedding multiplies nothing, write {scheme.format.name} without /{scheme.activation}")
    return scheme


_SCALES = {suffix or "float16": scale_type for suffix, scale_type in SCALE_TYPES.items()}
_Scales = Annotated[list[str], _one_of(tuple(_SCALES))]
_GroupSizes = Annotated[list[int | Literal["row"]], _one_of((*GROUP_SIZES, "row"))]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True)


class IntegerSupport(_Section):
    """Which uniform formats the target decodes."""

    bits: Annotated[list[int], _one_of(INTEGER_BITS)]
    group_sizes: _GroupSizes
    zero_points: bool
    scales: _Scales = ["float16"]

    def holds(self, fmt: IntegerFormat) -> bool:
        """Whether a format is among them."""
        return (
            fmt.bits in self.bits
            and (fmt.group_size or "row") in self.group_sizes
            and (self.zero_points or not fmt.asymmetric)
            and _has_scales(fmt, self.scales)
        )

    def __str__(self) -> str:
        zero_points = ", with or without zero points (a)" if self.zero_points else ", without zero points"
        scales = f", scales {_listed(self.scales)}"
        return f"int {_listed(self.bits)} bits in groups of {_listed(self.group_sizes)}{zero_points}{scales}"


class CodebookSupport(_Section):
    """Which look-up-table formats the target decodes."""

    bits: Annotated[list[int], _one_of(CODEBOOK_BITS)]
    group_sizes: _GroupSizes
    per_row: bool
    scales: _Scales = ["float16"]

    def holds(self, fmt: CodebookFormat) -> bool:
        """Whether a format is among them."""
        per_tensor = fmt.per_tensor or fmt.normal_float
        return (
            fmt.bits in self.bits
            and (fmt.group_size or "row") in self.group_sizes
            and (self.per_row or per_tensor)
            and _has_scales(fmt, self.scales)
        )

    def __str__(self) -> str:
        tables = "a table a row or a tensor (t)" if self.per_row else "a table a tensor (t)"
        scales = f", scales {_listed(self.scales)}"
        return f"lut {_listed(self.bits)} bits in groups of {_listed(self.group_sizes)}, {tables}{scales}"


def _has_scales(fmt: Format, names: list[str]) -> bool:
    return fmt.scale_type in [_SCALES[name] for name in names]


class Preferred(_Section):
    """The schemes used where the user asks for none."""

    linear: Annotated[_Scheme, AfterValidator(_multiplies)]
    head: Annotated[_Scheme, AfterValidator(_multiplies)]
    embedding: Annotated[_Scheme, AfterValidator(_looks_up)]


class Target(_Section):
    """A hardware descriptor.

    Attributes:
        name: what it is called.
        description: one line for people.
        dialect: the operators its runtime takes.
        activations: the precisions it multiplies in.
        integer: the uniform weight formats it decodes, if any.
        codebook: the look-up-table formats it decodes, if any; ternary ones are of 2 bits.
        mx: the microscaling formats it decodes, if any.
        others: formats of other kinds, which packages add, by name.
        hadamard: whether it rotates activations by Hadamard matrices, for weights with rotated inputs (`lut3g128h`).
        preferred: the schemes chosen where the user asks for none.
    """

    name: Annotated[str, Field(min_length=1)]
    description: str
    dialect: Literal["qxc"]
    activations: Annotated[list[str], _one_of(ACTIVATIONS)]
    integer: IntegerSupport | None = None
    codebook: CodebookSupport | None = None
    mx: Annotated[list[str], _one_of(MX_FORMATS)] | None = None
    others: list[str] | None = None
    hadamard: bool = False
    preferred: Preferred

    def check(self, scheme: Scheme) -> None:
        """Make sure that the target can run a scheme.

        Raises:
            UnsupportedByTargetError: it cannot; the message says what it can do.
        """
        if not self._holds(scheme.format):
            supports = (self.integer, self.codebook, ", ".join([*(self.mx or []), *(self.others or [])]))
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

    def _holds(self, fmt: Format) -> bool:
        if isinstance(fmt, IntegerFormat):
            return self.integer is not None and self.integer.holds(fmt)
        if isinstance(fmt, CodebookFormat):
            return self.codebook is not None and self.codebook.holds(fmt)
        if isinstance(fmt, MxFormat):
            return self.mx is not None and replace(fmt, rotated=False).name in self.mx
        return replace(fmt, rotated=False).name in (self.others or [])


def _listed(values: list[Any]) -> str:
    return "/".join(str(value) for value in values)


def target_names() -> list[str]:
    """The descriptors that come with the compiler, and those that packages add."""
    return sorted({*_built_in(), *extensions("targets")})


def _built_in() -> dict[str, Path]:
    return {path.stem: path for path in _FOLDER.glob("*.yaml")}


def find_target(name: str) -> Path | None:
    """The descriptor of that name: one that comes with the compiler, or one that a package adds.

    A package adds its own by an entry point of the group `qxcompiler.targets`: a path, or a function that gives it.
    """
    place: Any = find("targets", name, _built_in())
    return None if place is None else Path(place() if callable(place) else place)


def load_target(name_or_path: str | Path) -> Target:
    """Read a descriptor, by its name or by its file.

    Raises:
        TargetError: there is none, or it is not valid; the message names the field.
        UnsupportedByTargetError: it prefers what it says it cannot do.
    """
    path = find_target(str(name_or_path)) or Path(name_or_path)
    if not path.is_file():
        raise TargetError(name_or_path, "no such target", f"name one of {', '.join(target_names())}, or a YAML file")
    fields = read_yaml(path, "a descriptor", "start from one of the descriptors of `qxc targets`")
    try:
        target = Target.model_validate(fields)
    except ValidationError as error:
        field, problem = first_invalid(error)
        remedy = "see docs/targets.md for the fields and their values"
        raise TargetError(path, f"field {field}: {problem}", remedy) from error
    for scheme in (target.preferred.linear, target.preferred.head, target.preferred.embedding):
        target.check(scheme)
    return target
