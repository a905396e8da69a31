"""Descriptors by name and by file: found, read, put on what they inherit, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from qxcompiler.errors import TargetError
from qxcompiler.extensions import extensions, find
from qxcompiler.targets.schema import Target
from qxcompiler.yaml_files import read_yaml_with_lines

__all__ = ["descriptor_files", "find_target", "load_target", "target_names"]

_FOLDER = Path(__file__).parent
_DEEPEST = 8
_REMEDY = "see docs/targets.md for the fields and their values"
_Place = tuple[str | int, ...]


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
    """Read a descriptor, by its name or by its file, with what it inherits.

    Raises:
        TargetError: there is none, or it is not valid; the message names file, line and field.
        UnsupportedByTargetError: it prefers what it says it cannot do.
    """
    descriptor = _read(_find(name_or_path), ())
    try:
        target = Target.model_validate(descriptor.fields)
    except ValidationError as error:
        raise descriptor.error(error) from error
    for scheme in (target.preferred.linear, target.preferred.head, target.preferred.embedding):
        target.check(scheme)
    return target


def descriptor_files(name_or_path: str | Path) -> list[Path]:
    """The files that a descriptor is read from: its own, then those that it inherits by their paths, not by name.

    Raises:
        TargetError: one of them cannot be read.
    """
    return _read(_find(name_or_path), ()).files


def _find(name_or_path: str | Path) -> Path:
    path = find_target(str(name_or_path)) or Path(name_or_path)
    if not path.is_file():
        raise TargetError(name_or_path, "no such target", f"name one of {', '.join(target_names())}, or a YAML file")
    return path


@dataclass
class _Descriptor:
    """A descriptor's fields, with those it inherits, and the file and line that each came from."""

    fields: dict[str, Any]
    origins: dict[_Place, tuple[Path, int]]
    files: list[Path]

    def error(self, error: ValidationError) -> TargetError:
        """One line: file, line, field, what is wrong, the values that are allowed."""
        first = min(
            error.errors(), key=lambda each: each["type"] != "extra_forbidden"
        )  # a mistyped name is missing too
        place: _Place = tuple(part for part in first["loc"] if part != "[key]")
        if first["type"] == "misfit":  # of several fields, one is named
            place = tuple(first["ctx"]["field"].split("."))
        problem = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            problem = f"there is no such field; choose among {', '.join(_known_fields(place[:-1]))}"
        # as far as the file has the place: a missing field has the line of its section; a union's branches have names
        known = place
        while known and known not in self.origins:
            known = known[:-1]
        path, line = self.origins.get(known, (self.files[0], 1))
        field = ".".join(map(str, place))
        return TargetError(f"{path}:{line}", f"field {field}: {problem}" if field else problem, _REMEDY)


def _read(path: Path, heirs: tuple[Path, ...]) -> _Descriptor:
    """A descriptor upon what it inherits; `heirs` are the files that inherit it."""
    here = path.resolve()
    fields, lines = read_yaml_with_lines(path, "a descriptor", "start from one of the descriptors of `qxc targets`")
    origins = {place: (path, line) for place, line in lines.items()}
    base = fields.get("inherit")
    if base is None:
        return _Descriptor(_without_nulls(fields), origins, [path])
    subject = f"{path}:{lines[('inherit',)]}"
    if not isinstance(base, str):
        raise TargetError(subject, "field inherit: must be a target's name, or a file beside this one", _REMEDY)
    place = find_target(base)
    named = place is not None
    if place is None:
        place = (path.parent / base).resolve()
        if not place.is_relative_to(path.parent.resolve()):
            raise TargetError(subject, f"field inherit: {base} leads out of the descriptor's folder", "move it there")
        if not place.is_file():
            problem = f"field inherit: there is no target and no file {base}"
            raise TargetError(subject, problem, f"name one of {', '.join(target_names())}, or a file beside it")
    if place.resolve() in (here, *heirs):
        raise TargetError(subject, f"field inherit: {base} inherits this descriptor in turn", "break the circle")
    if len(heirs) + 1 >= _DEEPEST:
        raise TargetError(subject, f"field inherit: more than {_DEEPEST} descriptors in a row", "inherit fewer")
    inherited = _read(place, (*heirs, here))
    files = [path, *([] if named else inherited.files)]
    return _Descriptor(_merged(inherited.fields, fields), inherited.origins | origins, files)


def _merged(base: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """A mapping upon another, key by key (as JSON Merge Patch, RFC 7396): null removes, lists are replaced."""
    merged = dict(base)
    for key, value in fields.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = _without_nulls(value)
    return merged


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return value


def _known_fields(place: tuple[str | int, ...]) -> list[str]:
    """The fields of the section at a place in a descriptor."""
    kinds: list[Any] = [Target]
    for part in place:
        inner: list[Any] = []
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                field = kind.model_fields.get(str(part))
                inner += _parts(field.annotation) if field is not None else []
            elif get_origin(kind) in (dict, list):
                inner += _parts(get_args(kind)[-1])
        kinds = inner
    return [
        name for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel) for name in kind.model_fields
    ]


def _parts(kind: Any) -> list[Any]:
    """The kinds that a union offers, without their annotations."""
    if get_origin(kind) is Annotated:
        return _parts(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [part for each in get_args(kind) for part in _parts(each)]
    return [kind]
