"""A user's words as a model's chat template puts them."""

from __future__ import annotations

__all__ = ["chat_template", "put_in_template", "render_chat"]

import json
import time
from pathlib import Path
from typing import Any, NoReturn

from qxcompiler_runtime.errors import TokenizerError

_SETTINGS = "tokenizer_config.json"


def render_chat(folder: Path, words: str) -> str:
    """What a model is given of a conversation that a user begins, up to where it answers.

    Args:
        folder: the model's, with `chat_template.jinja` or `tokenizer_config.json`.
        words: the user's.

    Raises:
        TokenizerError: there is no template, or it cannot be used.
    """
    template = chat_template(folder)
    if template is None:
        problem = "there is no chat template"
        raise TokenizerError(folder, problem, f"put chat_template.jinja or {_SETTINGS} there, or leave --chat")
    return put_in_template(template, words, **_named_tokens(folder))


def put_in_template(template: str, words: str, bos_token: str = "", eos_token: str = "") -> str:
    """A conversation of one user's words, by a template in Jinja as transformers reads it, which runs in a sandbox.

    Raises:
        TokenizerError: the template fails, or the package `jinja2` is not installed.
    """
    try:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        remedy = "pip install 'qxcompiler-runtime[generate]'"
        raise TokenizerError("the package jinja2", "is not installed", remedy) from error
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": _refuse, "strftime_now": time.strftime}
    messages = [{"role": "user", "content": words}]
    try:
        return environment.from_string(template).render(
            messages=messages, add_generation_prompt=True, bos_token=bos_token, eos_token=eos_token
        )
    except Exception as error:  # templates are programs, which fail in any way
        raise TokenizerError("the chat template", f"cannot be used ({error})", "correct it") from error


def chat_template(folder: Path) -> str | None:
    """As it lies beside the model; of several, the one called default."""
    file = folder / "chat_template.jinja"
    try:
        if file.is_file():
            return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    template = _settings(folder).get("chat_template")
    if isinstance(template, list):
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _named_tokens(folder: Path) -> dict[str, str]:
    """The tokens that templates write by name."""
    found = {}
    for name in ("bos_token", "eos_token"):
        token = _settings(folder).get(name)
        token = token.get("content") if isinstance(token, dict) else token
        found[name] = token if isinstance(token, str) else ""
    return found


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / _SETTINGS).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)
