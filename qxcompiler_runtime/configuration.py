"""What the configuration files beside a model say of it."""

from __future__ import annotations

__all__ = ["context_limit", "end_of_sequence"]

import json
from pathlib import Path
from typing import Any

from qxcompiler_runtime.errors import UsageError


def context_limit(model_path: str | Path | None) -> int | None:
    """How many tokens the model's positions reach, by the `config.json` beside it; None if unsaid."""
    if model_path is None:
        return None
    try:
        config = json.loads((Path(model_path).parent / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    limits = [config.get(key) for key in ("max_position_embeddings", "n_positions")] if isinstance(config, dict) else []
    return next((limit for limit in limits if type(limit) is int and limit > 0), None)


def end_of_sequence(folder: Path) -> set[int]:
    """The tokens that end a text, by the generation settings or the configuration beside the model."""
    for name in ("generation_config.json", "config.json"):
        try:
            settings: Any = json.loads((folder / name).read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        end = settings.get("eos_token_id") if isinstance(settings, dict) else None
        if end is None:
            continue
        tokens = end if isinstance(end, list) else [end]
        if not all(type(token) is int for token in tokens):
            problem = f"eos_token_id is {str(end)[:100]}, not a token or a list of tokens"
            raise UsageError(folder / name, problem, "correct the file")
        return set(tokens)
    return set()
