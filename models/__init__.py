"""Export recipes: from a Hugging Face model to ONNX, one YAML file for each family of models."""

from __future__ import annotations

__all__ = ["Recipe", "export", "load_recipes"]

from qxcompiler.models.export import export
from qxcompiler.models.recipes import Recipe, load_recipes
