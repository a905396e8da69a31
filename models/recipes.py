"""Read the export recipes: every `.yaml` file in this folder is one."""

from __future__ import annotations

__all__ = ["Recipe", "load_recipes", "recipe_for"]

from functools import cache
from importlib import resources
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qxcompiler.errors import ExportError
from qxcompiler.yaml_files import parse_yaml


class Recipe(BaseModel):
    """How models of one family become ONNX.

    Attributes:
        family: what to call it.
        model_types: the `model_type`s of `config.json` that belong to it.
        task: the export task of optimum, which fixes the inputs and outputs.
        model_class: the class of transformers that loads the weights.
        tokenizer: whether a `tokenizer.json` must lie beside the exported model.
        companions: other files copied from the source where it has them.
        unused_weights: beginnings of the names of weights that the exported graph does not use, and so may be
            missing.
        example: shapes, without the batch, of the inputs that the export is checked with; a name is looked up
            in the model's configuration. Integer inputs are token ids.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str = Field(min_length=1)
    model_types: tuple[str, ...] = Field(min_length=1)
    task: str = Field(pattern=r"^[a-z-]+$")
    model_class: Literal["AutoModel", "AutoModelForCausalLM", "AutoModelForSpeechSeq2Seq"]
    tokenizer: bool = False
    companions: tuple[str, ...] = ()
    unused_weights: tuple[str, ...] = ()
    example: dict[str, tuple[int | str, ...]] = Field(min_length=1)


@cache
def load_recipes() -> tuple[Recipe, ...]:
    """All recipes, by file name."""
    files = sorted(resources.files("qxcompiler.models").iterdir(), key=lambda file: file.name)
    return tuple(
        Recipe.model_validate(parse_yaml(file.read_text("utf-8"))) for file in files if file.name.endswith(".yaml")
    )


def recipe_for(model_type: str, source: object) -> Recipe:
    """The recipe of a model type.

    Raises:
        ExportError: no recipe has this type; the message names those there are.
    """
    for recipe in load_recipes():
        if model_type in recipe.model_types:
            return recipe
    known = sorted(name for recipe in load_recipes() for name in recipe.model_types)
    raise ExportError(source, f"no recipe exports models of type {model_type!r}", f"known are {', '.join(known)}")
