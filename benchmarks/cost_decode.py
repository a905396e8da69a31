"""Predicted against measured: what a token takes of compiled language models, in many schemes.

    python benchmarks/cost_decode.py MODEL.onnx [MODEL.onnx ...] [--threads 1] [--scheme int3g128/a8 ...]

Models are exported ones; `benchmarks/random_llama.py` makes one. All their weights are rounded to the scheme. Then the
machine is profiled (`qxc profile`), and right after it tokens are timed: a shared machine is not as fast at any time.
As the profiler takes the fastest of some rounds, so does this: the median of the tokens of a round, all schemes in
turn.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from quality import qxc
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from qxcompiler.cost import predict
from qxcompiler.graph import find_sites, load_model, normalize
from qxcompiler.targets import Target, load_target
from qxcompiler_runtime.decoder import Decoder
from qxcompiler_runtime.model import ModelFile

SCHEMES = [
    "int2g128/a8", "int2g128/a16", "int3g128/a8", "int4g128/a8", "int4g128/a16", "int6g128/a8", "int8g128/a8",
    "lut3g128/a16", "lut4g128/a8", "mxfp4/a8",
]  # fmt: skip
TOKENS, ROUNDS = 16, 9
REST = 0.05  # seconds after a model's turn: threads that still spin would disturb the next


def compiled(model: Path, scheme: str, folder: Path) -> Path:
    """The model with all weights in one scheme."""
    fmt, _, activation = scheme.partition("/")
    options = ["--target", "cpu-x86", "--quantizer", "rtn", "--activations", activation, "--no-verify"]
    every = [argument for part in ("weights", "head", "embedding") for argument in (f"--{part}", fmt)]
    qxc("compile", model, *options, *every, "-o", folder)
    return folder / "model.onnx"


def profiled(path: Path, threads: int) -> Target:
    """This machine."""
    command = [sys.executable, "-P", "-m", "qxcompiler.cli", "profile", "-o", path, "--threads", threads]
    subprocess.run(list(map(str, command)), check=True)
    return load_target(str(path))


class Turns:
    """A model that decodes after so many tokens, again and again."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        self._decoder = Decoder(ModelFile(path, threads=threads), context=context + TOKENS)
        self._token = 1
        self._decoder.step([[self._token] * (context - TOKENS // 2)])

    def seconds(self) -> float:
        """Of a token, the median of some in a row."""
        seconds = []
        for _ in range(TOKENS):
            start = time.perf_counter()
            self._token = int(np.argmax(self._decoder.step([[self._token]])[0]))
            seconds.append(time.perf_counter() - start)
        self._decoder.rewind(TOKENS)
        time.sleep(REST)
        return statistics.median(seconds)


def measured(paths: list[Path], threads: int, context: int) -> list[float]:
    """Seconds of a token of each model."""
    turns = [Turns(path, threads, context) for path in paths]
    rounds = [[turn.seconds() for turn in turns] for _ in range(ROUNDS)]
    return [min(seconds) for seconds in zip(*rounds, strict=True)]


def main(
    models: list[Path],
    threads: int = 1,
    scheme: Annotated[list[str], typer.Option(help="May be given several times.")] = SCHEMES,
    context: Annotated[int, typer.Option(min=TOKENS)] = 64,
) -> None:
    """Print a row for each model and scheme, and the mean absolute error and the rank correlation of each model."""
    console = Console(width=120)
    with TemporaryDirectory() as name:
        folder = Path(name)
        paths = [
            [compiled(model, each, folder / f"{index}" / each.replace("/", "-")) for each in scheme]
            for index, model in enumerate(models)
        ]
        target = profiled(folder / "host.yaml", threads)
        times = [measured(each, threads, context) for each in paths]
        for model, those, seconds in zip(models, paths, times, strict=True):
            predicted = []
            for path in those:
                graph = load_model(path)
                normalize(graph)
                predicted.append(predict(graph, find_sites(graph), target, context=context)[0])
            errors = [guess.seconds / found - 1 for guess, found in zip(predicted, seconds, strict=True)]
            title = f"{model}, {threads} thread(s)"
            table = Table("scheme", "predicted ms", "measured ms", "difference", "bound by", title=title)
            for each, guess, found, error in zip(scheme, predicted, seconds, errors, strict=True):
                bound = ", ".join(f"{name} {1e3 * part:.2f}" for name, part in list(guess.bound_by.items())[:3])
                table.add_row(each, f"{1e3 * guess.seconds:.2f}", f"{1e3 * found:.2f}", f"{error:+.1%}", bound)
            console.print(table)
            rank = spearmanr([guess.seconds for guess in predicted], seconds).statistic
            console.print(f"mean absolute error {statistics.mean(map(abs, errors)):.1%}, rank correlation {rank:.3f}")


if __name__ == "__main__":
    typer.run(main)
