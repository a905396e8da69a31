"""Perplexity and compile time of a language model under several schemes, as docs/results.md shows them.

    python benchmarks/accuracy.py MODEL.onnx CALIBRATION.txt EVALUATION.txt [SCHEME ...] [--keep REGEX]

A scheme is `quantizer:format/activation`, such as `gptq:int3g128a/a16`. Every compile runs in a process of its own
through the command line, so that its time is what a user waits.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

SCHEMES = [
    "rtn:int4g128a/a16",
    "rtn:int3g128a/a16",
    "gptq:int4g128a/a16",
    "gptq:int3g128a/a16",
    "gptq:lut3g128/a16",
    "gptq:lut3g128/a8",
    "gptq:lut2g64/a16",
]


def qxc(*arguments: object) -> dict[str, Any]:
    """Run a command and read the JSON that it prints."""
    command = [sys.executable, "-P", "-m", "qxcompiler.cli", *map(str, arguments), "--json"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout)


def main(
    model: Path,
    calibration: Path,
    evaluation: Path,
    schemes: Annotated[list[str], typer.Argument()] = SCHEMES,
    keep: str = "^(head|embedding)$",
    samples: int = 48,
) -> None:
    """Compile and measure each scheme, and print a table."""
    table = Table("scheme", "bits per weight", "size MB", "compile s", "perplexity", "ratio", "KL", "top-1 agreement")
    original = qxc("eval", model, "--text", evaluation)["perplexity"]
    size = sum(file.stat().st_size for file in model.parent.glob(f"{model.name}*"))
    table.add_row("float32", "32", f"{size / 1e6:.1f}", "", f"{original:.2f}", "", "", "")
    for scheme in schemes:
        quantizer, _, rest = scheme.partition(":")
        weights, _, activations = rest.partition("/")
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            report = qxc(
                "compile", model, "--target", "cpu-x86", "-o", folder, "--weights", weights, "--activations",
                activations,
                "--quantizer", quantizer, "--calibration", calibration, "--samples", samples, "--keep", keep,
            )  # fmt: skip
            seconds = time.perf_counter() - start
            figures = qxc("eval", Path(folder, "model.onnx"), "--text", evaluation, "--reference", model)
        table.add_row(
            scheme,
            f"{report['quantized_bits_per_weight']:.3f}",
            f"{report['bytes_after'] / 1e6:.1f}",
            f"{seconds:.0f}",
            f"{figures['perplexity']:.2f}",
            f"{figures['perplexity'] / original:.3f}",
            f"{figures['kl_divergence']:.3f}",
            f"{figures['top1_agreement']:.3f}",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
