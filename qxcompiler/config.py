"""A compile as a file: what `--config` reads, and what every compile writes beside its result."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from qxcompiler import __version__
from qxcompiler.errors import UsageError, first_invalid
from qxcompiler.options import Options
from qxcompiler.recipes import recipe_names
from qxcompiler.targets import find_target
from qxcompiler.yaml_files import read_yaml

__all__ = ["CONFIG", "SELF", "Config", "MadeWith", "file_digest", "load_config", "made_with", "save_config"]

CONFIG = "compile.yaml"
SELF = Path("self")  # a calibration: what the model writes
_PATHS = ("model", "plan")


class MadeWith(BaseModel):
    """What a compile's result depends on besides its options.

    Attributes:
        versions: of the packages that compute.
        sha256: of the files that were read, by path.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    versions: dict[str, str]
    sha256: dict[str, str]


class Config(Options):
    """A compile: the fields of `Options`, and what they are applied to. Paths are relative to the file's folder.

    Attributes:
        model: the ONNX file, or a folder with several; None for one that was in memory.
        target: name or file of a hardware descriptor.
        calibration: the file of samples, if there are any, or several files; `self` is what the model writes.
        recipe: name or file of a recipe, whose options the others go before; in none that a compile has written.
        made_with: in a file that a compile has written.
    """

    model: Path | None = None
    target: str | None = None
    calibration: Path | list[Path] | None = None
    recipe: str | None = None
    made_with: MadeWith | None = None


def load_config(path: Path) -> Config:
    """Read a configuration; paths in the result lead from where the process is.

    Raises:
        TargetError: the file cannot be read, or is no YAML.
        UsageError: it has a field that there is not, or a value out of range.
    """
    fields = read_yaml(path, "a configuration", "see docs/tutorial.md for its fields")
    try:
        config = Config.model_validate(fields)
    except ValidationError as error:
        name, problem = first_invalid(error)
        known = name.partition(".")[0] in Config.model_fields
        remedy = "correct it" if known else f"choose among {', '.join(Config.model_fields)}"
        raise UsageError(path, f"field {name}: {problem}", remedy) from error
    there = path.parent
    paths = {name: _each(lambda path: there / path, getattr(config, name)) for name in _PATHS}
    paths["calibration"] = _each(lambda path: path if path == SELF else there / path, config.calibration)
    target = config.target
    if target is not None and find_target(target) is None:
        target = str(there / target)
    recipe = config.recipe
    if recipe is not None and recipe not in recipe_names():
        recipe = str(there / recipe)
    said = config.made_with
    if said is not None:
        digests = {str(there / name): digest for name, digest in said.sha256.items()}
        said = MadeWith(versions=said.versions, sha256=digests)
    return config.model_copy(update={**paths, "target": target, "recipe": recipe, "made_with": said})


def save_config(config: Config, stage: Path, output: Path) -> None:
    """Write `compile.yaml` into a stage, for the folder that its files will move to."""

    def from_there(path: object) -> str:
        return os.path.relpath(str(path), output)

    fields = config.model_dump(mode="json")
    for name in _PATHS:
        fields[name] = _each(from_there, fields[name])
    fields["calibration"] = _each(lambda path: str(path) if path == SELF else from_there(path), config.calibration)
    if (target := fields["target"]) is not None and find_target(target) is None:
        fields["target"] = from_there(target)
    if fields["made_with"] is not None:
        digests = fields["made_with"]["sha256"]
        fields["made_with"]["sha256"] = {from_there(path): digest for path, digest in digests.items()}
    order = ["model", "target", "calibration", *Options.model_fields, "made_with"]
    text = yaml.safe_dump({name: fields[name] for name in order}, sort_keys=False, allow_unicode=True)
    (stage / CONFIG).write_text(text, encoding="utf-8")


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """A path changed, or every one of several; None is none."""
    if isinstance(value, list):
        return [_each(change, path) for path in value]
    return None if value is None else change(value)


def made_with(files: Iterable[Path]) -> MadeWith:
    """The versions at work, and what is in some files now."""
    versions = {
        "qxcompiler": __version__,
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
    }
    return MadeWith(versions=versions, sha256={str(path): file_digest(path) for path in files})


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read a piece at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
