"""How well a sentence encoder holds in fewer bits: the mean cosine of its embeddings with the original's.

    python benchmarks/sentences.py MODEL.onnx --calibration TEXT --evaluation TEXT [--row OPTIONS ...]

An embedding is the mean of the last hidden states over the tokens of a paragraph, as sentence-transformers pools those
of all-MiniLM-L6-v2. Paragraphs are the lines of the evaluation's text of 20 words at least, up to 256 tokens each.
Each row compiles with other options, `--recipe best --weights lut3g64ts8h` for example.
"""

from __future__ import annotations

import shlex
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from quality import qxc
from rich.console import Console
from rich.table import Table

from qxcompiler_runtime.inputs import derive
from qxcompiler_runtime.model import ModelFile
from qxcompiler_runtime.tokens import encode, load_tokenizer

WORDS, TOKENS = 20, 256
ROWS = [
    "--quantizer rtn --weights int4g32",
    "--weights lut3g128",
    "--recipe balanced",
    "--recipe best",
    "--recipe best --bpw 3.25",
    "--weights lut4g128",
    "--recipe best --bpw 4.25",
]


def embeddings(path: Path, paragraphs: list[list[int]]) -> np.ndarray:
    """Of each paragraph [count, width], of length one."""
    model, rows = ModelFile(path), []
    for ids in paragraphs:
        feed: dict[str, Any] = {"input_ids": np.array([ids])}
        feed |= {spec.name: derive(spec, feed, 0) for spec in model.inputs if spec.name not in feed}
        states = model.session.run(["last_hidden_state"], feed)[0][0]
        rows.append(states.mean(0) / np.linalg.norm(states.mean(0)))
    return np.stack(rows)


def main(
    model: Path,
    rows: Annotated[list[str], typer.Option("--row", help="Options of a compile; may be given several times.")] = ROWS,
    calibration: Path = Path("calibration.txt"),
    evaluation: Path = Path("evaluation.txt"),
    paragraphs: int = 300,
    length: Annotated[int, typer.Option(help="Tokens a sample: as short as what the model is for.")] = 128,
) -> None:
    """Print a row for each way to compile."""
    tokenizer = load_tokenizer(model, None)
    lines = [line for line in evaluation.read_text(encoding="utf-8").splitlines() if len(line.split()) >= WORDS]
    texts = [encode(tokenizer, line, "a paragraph").ids[:TOKENS] for line in lines[:paragraphs]]
    original = embeddings(model, texts)
    table = Table("options", "bits per weight", "mean cosine", "least", "compile s")
    for row in rows:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            given = ["--target", "cpu-x86", "--activations", "a16", "--embedding", "float"]
            given += ["--calibration", calibration, "--length", length]
            report = qxc("compile", model, *given, *shlex.split(row), "-o", folder)
            seconds = time.perf_counter() - start
            cosines = (original * embeddings(Path(folder, "model.onnx"), texts)).sum(1)
        bits = f"{report['quantized_bits_per_weight']:.3f}"
        table.add_row(row, bits, f"{cosines.mean():.4f}", f"{cosines.min():.4f}", f"{seconds:.0f}")
        print(row, bits, f"{cosines.mean():.4f}", f"{cosines.min():.4f}", f"{seconds:.0f}", flush=True)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
