"""Text to tokens, by the `tokenizer.json` beside a model."""

from __future__ import annotations

__all__ = ["encode", "load_tokenizer"]

from pathlib import Path
from typing import TYPE_CHECKING

from qxcompiler_runtime.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


def load_tokenizer(model_path: str | Path | None, tokenizer: str | Path | None = None) -> Tokenizer:
    """The tokenizer of a model, with truncation and padding switched off.

    Args:
        model_path: the ONNX file; `tokenizer.json` is looked for beside it.
        tokenizer: a `tokenizer.json`, or the folder that holds one, to use instead.

    Raises:
        TokenizerError: there is no such file, it is not a tokenizer, or the package `tokenizers` is not installed.
    """
    if tokenizer is None and model_path is None:
        raise TokenizerError("text", "there is no tokenizer to read it with", "name one, or give arrays")
    path = Path(tokenizer) if tokenizer is not None else Path(model_path or "").parent
    if path.is_dir():
        path /= "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(path, "no such file", "put the model's tokenizer.json there or name it with --tokenizer")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        remedy = "pip install 'qxcompiler-runtime[generate]'"
        raise TokenizerError("the package tokenizers", "is not installed", remedy) from error
    try:
        loaded: Tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(path, f"not a tokenizer ({error})", "give a Hugging Face tokenizer.json") from error
    loaded.no_truncation()
    loaded.no_padding()
    return loaded


def encode(tokenizer: Tokenizer, text: str, subject: object, *, add_special_tokens: bool = True) -> Encoding:
    """A text as tokens.

    Raises:
        TokenizerError: the tokenizer has no token for a part of it.
    """
    try:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)
    except Exception as error:  # the library raises bare Exception
        problem = f"cannot be made tokens of ({error})"
        raise TokenizerError(subject, problem, "give the model's own tokenizer.json") from error
