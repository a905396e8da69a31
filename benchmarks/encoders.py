"""A compiled encoder beside the float model in onnxruntime, whose own fusions are on: milliseconds a run.

    python benchmarks/encoders.py FLOAT.onnx COMPILED.onnx [--batch 1 --batch 32] [--length 128] [--threads 1]

Both run in turn in one process, on the same random inputs: token ids, or images. Figures are medians over rounds of the
faster half of a round's runs. A difference between the two models' first outputs is printed beside, as a cosine.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import typer
from rich.console import Console
from rich.table import Table

from qxcompiler_runtime.inputs import InputSpec
from qxcompiler_runtime.model import ModelFile

VOCABULARY = 10_000  # random tokens are below
IMAGE = 224  # pixels, where a model leaves an image's size open


def feed(specs: list[InputSpec], batch: int, length: int) -> dict[str, Any]:
    """Random values for every input."""
    draws = np.random.default_rng(0)

    def value(spec: InputSpec) -> Any:
        assert spec.shape is not None
        free = [batch, *([length] if len(spec.shape) == 2 else [3, IMAGE, IMAGE])]
        shape = [size if isinstance(size, int) else free[axis] for axis, size in enumerate(spec.shape)]
        if spec.dtype.kind == "f":
            return draws.standard_normal(shape).astype(spec.dtype)
        if spec.name.endswith("mask"):
            return np.ones(shape, spec.dtype)
        return draws.integers(0, VOCABULARY if spec.name.endswith("input_ids") else 1, shape).astype(spec.dtype)

    return {spec.name: value(spec) for spec in specs}


def milliseconds(session: onnxruntime.InferenceSession, values: dict[str, Any], seconds: float) -> float:
    """Of a run, the median of the faster half of as many as fit."""
    times: list[float] = []
    while sum(times) < seconds:
        start = time.perf_counter()
        session.run(None, values)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(sorted(times)[: (len(times) + 1) // 2])


def main(
    float_model: Path,
    compiled: Path,
    batch: Annotated[list[int], typer.Option(help="May be given several times.")] = [1, 32],  # noqa: B006
    threads: Annotated[list[int], typer.Option(help="May be given several times.")] = [1, 2],  # noqa: B006
    length: Annotated[int, typer.Option(help="Tokens of a text.")] = 128,
    rounds: int = 7,
    seconds: Annotated[float, typer.Option(help="Of a model in a round.")] = 1.0,
) -> None:
    """Print a row for each number of threads and batch."""
    table = Table("threads", "batch", "float ms", "compiled ms", "ratio", "cosine")
    for count in threads:
        models = [ModelFile(path, threads=count) for path in (float_model, compiled)]
        for size in batch:
            values = feed(models[0].inputs, size, length)
            outputs = [np.ravel(model.session.run(None, values)[0]) for model in models]  # and to warm up
            times = [[milliseconds(model.session, values, seconds) for model in models] for _ in range(rounds)]
            plain, ours = (statistics.median(column) for column in zip(*times, strict=True))
            ratio = statistics.median(a / b for a, b in times)
            cosine = np.dot(*outputs) / np.prod([np.linalg.norm(each) for each in outputs])
            table.add_row(str(count), str(size), f"{plain:.2f}", f"{ours:.2f}", f"{ratio:.2f}", f"{cosine:.4f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
