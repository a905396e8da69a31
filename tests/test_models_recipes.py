from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from qxcompiler.errors import ExportError
from qxcompiler.models import Recipe, load_recipes
from qxcompiler.models.recipes import recipe_for

PROMISED = {
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "phi",
    "gemma",
    "gpt2",
    "opt",
    "bert",
    "vit",
    "clip",
    "whisper",
}


def test_every_promised_model_type_has_exactly_one_recipe() -> None:
    types = [name for recipe in load_recipes() for name in recipe.model_types]
    assert len(types) == len(set(types))
    assert set(types) >= PROMISED


def test_optimum_knows_every_task_of_every_recipe() -> None:
    pytest.importorskip("optimum.exporters.onnx.model_configs")
    from optimum.exporters.tasks import TasksManager

    for recipe in load_recipes():
        for name in recipe.model_types:
            tasks = TasksManager.get_supported_tasks_for_model_type(name, "onnx", library_name="transformers")
            assert recipe.task in tasks, name


def test_unknown_model_type_names_the_known() -> None:
    with pytest.raises(ExportError, match=r"folder: .*'mamba'.*: known are .*llama.*whisper"):
        recipe_for("mamba", "folder")


@pytest.mark.parametrize(
    "change",
    [
        {"model_class": "eval"},
        {"task": "Text Generation"},
        {"model_types": []},
        {"colour": "red"},
        {"example": {}},
    ],
)
def test_a_recipe_with_a_wrong_field_is_refused(change: dict[str, object]) -> None:
    good = load_recipes()[0].model_dump()
    assert Recipe.model_validate(good) == load_recipes()[0]
    with pytest.raises(ValidationError, match=next(iter(change))):
        Recipe.model_validate(good | change)


def test_importing_the_recipes_does_not_import_the_exporters() -> None:
    program = "import sys, qxcompiler.models; print({'transformers', 'optimum', 'gguf'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
