"""Recipes: options under a name, for how much a compile may spend. A new one is a YAML file here, or anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qxcompiler.errors import UsageError, first_invalid
from qxcompiler.options import Options
from qxcompiler.yaml_files import read_yaml

__all__ = ["Recipe", "load_recipe", "recipe_names"]

_BUILT_IN = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


@dataclass(frozen=True)
class Recipe:
    """What a recipe says.

    Attributes:
        options: fields of `Options`; others keep their defaults.
        writes: whether a language model writes samples where none are given (`calibration: self`).
    """

    options: dict[str, Any] = field(default_factory=dict)
    writes: bool = False

    def applied(self, given: dict[str, Any], *, samples: bool = True) -> Options:
        """The options of a compile: those given go before those of the recipe.

        Formats that a user names are meant for every layer, and so is a plan: a recipe's allocation is left out then.

        Args:
            given: by the user.
            samples: whether there are any. Without them, a recipe that lets a model write rounds to nearest.

        Raises:
            UsageError: there is no such option, or its value is out of range.
        """
        is_named = given.get("weights") is not None or given.get("plan") is not None
        own = {name: value for name, value in self.options.items() if not (is_named and name == "allocation")}
        if self.writes and not samples:
            own["quantizer"] = "rtn"
        return Options.checked(own | given)


def recipe_names() -> list[str]:
    """The recipes that come along."""
    return list(_BUILT_IN)


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe, by its name or by its file.

    Raises:
        UsageError: there is none, or it has a field that is no option, or a value out of range.
        TargetError: the file is no YAML.
    """
    path = _BUILT_IN.get(str(name_or_path), Path(name_or_path))
    if not path.is_file():
        problem = "no such recipe"
        raise UsageError(name_or_path, problem, f"name one of {', '.join(_BUILT_IN)}, or a YAML file")
    fields = read_yaml(path, "a recipe", "see docs/tutorial.md for its fields")
    calibration = fields.pop("calibration", None)
    if calibration not in (None, "self"):
        raise UsageError(path, "field calibration: can only be `self`", "give --calibration beside the recipe")
    try:
        recipe = Options.model_validate(fields)
    except ValidationError as error:
        field, problem = first_invalid(error)
        raise UsageError(
            path, f"field {field}: {problem}", f"choose among {', '.join(Options.model_fields)}"
        ) from error
    if recipe.plan is not None:
        raise UsageError(path, "field plan: a plan belongs to one model", "give --plan beside the recipe")
    return Recipe({name: getattr(recipe, name) for name in recipe.model_fields_set}, writes=calibration == "self")
