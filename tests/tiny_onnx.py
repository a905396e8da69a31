"""Tiny models in ONNX whose outputs can be worked out by hand, and a tokenizer for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import tokenizers
from onnx import numpy_helper

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def save_onnx(path: Path, text: str, **weights: np.ndarray) -> Path:
    """Write a model given in ONNX's textual form, with `__` for dots, which names cannot have there."""
    model = onnx.parser.parse_model(HEAD + text)
    for value in (*model.graph.input, *model.graph.output):
        value.name = value.name.replace("__", ".")
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [name.replace("__", ".") for name in names]
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    path.parent.mkdir(exist_ok=True)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def save_tokenizer(folder: Path, size: int) -> None:
    """The words w0, w1, ... as tokens 0, 1, ..."""
    words = {f"w{i}": i for i in range(size)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def save_bigram(path: Path, table: np.ndarray) -> Path:
    """Logits of the next token by a table of the current one."""
    save_tokenizer(path.parent, len(table))
    text = "bigram (int64[b, s] input_ids) => (float[b, s, v] logits) { logits = Gather(table, input_ids) }"
    return save_onnx(path, text, table=table)
