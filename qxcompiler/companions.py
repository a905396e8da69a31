"""What lies beside a model and goes along with it: configuration, tokenizer, and how inputs are prepared."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

__all__ = ["COMPANIONS", "CONFIGURATIONS", "VOCABULARIES", "copy_files", "files_beside"]

CONFIGURATIONS = ("config.json", "generation_config.json")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "vocab.bpe", "*.spm", "*.model")
COMPANIONS = (
    *VOCABULARIES,
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "normalizer.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)


def files_beside(source: Path, patterns: Iterable[str]) -> list[Path]:
    """The files of a folder whose names fit one of some patterns, as far as there are any."""
    return [file for pattern in patterns for file in sorted(source.glob(pattern)) if file.is_file()]


def copy_files(source: Path, folder: Path, patterns: Iterable[str]) -> None:
    """Copy these files."""
    for file in files_beside(source, patterns):
        shutil.copyfile(file, folder / file.name)
