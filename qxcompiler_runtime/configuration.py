"""What the configuration files beside a model say of it: Hugging Face's, and onnxruntime-genai's."""

from __future__ import annotations

__all__ = ["GENAI_CONFIG", "context_limit", "end_of_sequence", "head_size", "settings_beside"]

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qxcompiler_runtime.errors import UsageError

GENAI_CONFIG = "genai_config.json"
_CONFIG, _GENERATION = "config.json", "generation_config.json"


def context_limit(model_path: str | Path | None) -> int | None:
    """How many tokens the model's positions reach, by the configuration beside it; None if unsaid."""
    if model_path is None:
        return None
    settings = settings_beside(Path(model_path).parent)
    limits = [settings.get(key) for key in ("max_position_embeddings", "n_positions", "context_length")]
    return next((limit for limit in limits if type(limit) is int and limit > 0), None)


def head_size(folder: Path) -> int | None:
    """How many numbers a key of one head has, by the configuration beside the model; None if unsaid."""
    settings = settings_beside(folder)
    given = settings.get("head_dim", settings.get("head_size"))
    width, heads = settings.get("hidden_size"), settings.get("num_attention_heads")
    if given is None and type(width) is int and type(heads) is int and heads > 0:
        given = width // heads
    return given if type(given) is int and given > 0 else None


def end_of_sequence(folder: Path) -> set[int]:
    """The tokens that end a text, by the generation settings or the configuration beside the model.

    Raises:
        UsageError: they are no tokens.
    """
    for name in (_GENERATION, _CONFIG, GENAI_CONFIG):
        end = _settings(folder, name).get("eos_token_id")
        if end is None:
            continue
        tokens = end if isinstance(end, list) else [end]
        if not all(type(token) is int for token in tokens):
            problem = f"eos_token_id is {str(end)[:100]}, not a token or a list of tokens"
            raise UsageError(folder / name, problem, "correct the file")
        return set(tokens)
    return set()


def settings_beside(folder: Path, names: Iterable[str] = (_CONFIG, _GENERATION, GENAI_CONFIG)) -> dict[str, Any]:
    """What configurations say; of several, the first that says it."""
    settings: dict[str, Any] = {}
    for name in names:
        settings = _settings(folder, name) | settings
    return settings


def _settings(folder: Path, name: str) -> dict[str, Any]:
    """What one file says; nothing, if there is none or it is no JSON object."""
    try:
        found = json.loads((folder / name).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    if name == GENAI_CONFIG:  # the model's, with its decoder's among them
        model = found.get("model")
        if not isinstance(model, dict):
            return {}
        decoder = model.get("decoder")
        found = model | (decoder if isinstance(decoder, dict) else {})
    return found
