"""How well a language model holds under several schemes, on several kinds of text, as docs/results.md shows it.

    python benchmarks/quality.py [SCHEME ...] --model MODEL.onnx --calibration TEXT --evaluation TEXT

Without a model it takes SmolLM2-135M-Instruct, exported to `demo/`.
A scheme is `quantizer:format/activation`, such as `gptq:int3g128a/a16`; `+48` after it tunes on 48 samples. Beside the
text that is given, models are measured on two other kinds, on which nothing is calibrated: the reference of the Python
language (`pydoc_data.topics`), and the licences that Debian brings, where they are. Every compile runs in a process of
its own through the command line, so that its time is what a user waits.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import qxcompiler
from demo import smollm2

SCHEMES = [
    "rtn:int4g128a/a16",
    "rtn:int3g128a/a16",
    "gptq:int4g128a/a16",
    "gptq:int3g128a/a16",
    "gptq:lut3g128/a16",
    "gptaq:lut3g128/a16",
    "gptaq:lut3g64ts8h/a16",
    "gptq:lut3g128/a8",
    "gptq:lut3g128/a16+48",
    "gptq:lut2g64/a16",
]
SMOLLM2 = Path("demo/smollm2/model.onnx")
LICENCES = Path("/usr/share/common-licenses")


def qxc(*arguments: object) -> dict[str, Any]:
    """Run a command and read the JSON that it prints."""
    command = [sys.executable, "-P", "-m", "qxcompiler.cli", *map(str, arguments), "--json"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout)


def other_kinds(folder: Path) -> dict[str, Path]:
    """Texts that nobody calibrates on, by what to call them."""
    texts = {"Python's reference": "\n\n".join(topics[name] for name in sorted(topics))}
    if LICENCES.is_dir():
        files = sorted(path for path in LICENCES.iterdir() if not path.is_symlink())
        texts["licences"] = "\n\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
    paths = {name: folder / f"{index}.txt" for index, name in enumerate(texts)}
    for name, path in paths.items():
        path.write_text(texts[name], encoding="utf-8")
    return paths


def main(
    schemes: Annotated[list[str], typer.Argument()] = SCHEMES,
    model: Path = SMOLLM2,
    calibration: Annotated[list[str], typer.Option(help="As of `qxc compile`; may be given several times.")] = ["self"],  # noqa: B006
    evaluation: Annotated[list[Path], typer.Option(help="Texts to measure on, beside the other kinds.")] = [],  # noqa: B006
    keep: str = "^(head|embedding)$",
    samples: int = 48,
    windows: int = 40,
) -> None:
    """Compile and measure each scheme, and print a table."""
    if model == SMOLLM2 and not model.exists():
        qxcompiler.export(smollm2(), model.parent)
    with tempfile.TemporaryDirectory() as folder:
        texts = {path.stem: path for path in evaluation} | other_kinds(Path(folder))
        perplexities = {
            name: qxc("eval", model, "--text", text, "--windows", windows)["perplexity"] for name, text in texts.items()
        }
        columns = ("scheme", "bits per weight", "size MB", "compile s", "memory GB")
        table = Table(*columns, *(f"{name}: perplexity, ratio, KL, top-1" for name in texts))
        size = sum(file.stat().st_size for file in model.parent.glob(f"{model.name}*"))
        originals = (f"{perplexity:.2f}" for perplexity in perplexities.values())
        table.add_row("float32", "32", f"{size / 1e6:.1f}", "", "", *originals)
        given = [part for text in calibration for part in ("--calibration", text)]
        for scheme in schemes:
            quantizer, _, rest = scheme.partition(":")
            weights, _, rest = rest.partition("/")
            activations, _, tune = rest.partition("+")
            out = Path(folder, f"out{len(table.rows)}")
            start = time.perf_counter()
            report = qxc(
                "compile", model, "--target", "cpu-x86", "-o", out, "--weights", weights, "--activations", activations,
                "--quantizer", quantizer, "--samples", samples, "--tune", tune or 0, "--keep", keep, *given,
            )  # fmt: skip
            seconds = time.perf_counter() - start
            cells = []
            for name, text in texts.items():
                figures = qxc("eval", out / "model.onnx", "--text", text, "--reference", model, "--windows", windows)
                perplexity, divergence = figures["perplexity"], figures["kl_divergence"]
                ratio, agreement = perplexity / perplexities[name], figures["top1_agreement"]
                cells.append(f"{perplexity:.2f}, {ratio:.3f}, {divergence:.3f}, {agreement:.3f}")
            table.add_row(
                scheme,
                f"{report['quantized_bits_per_weight']:.3f}",
                f"{report['bytes_after'] / 1e6:.1f}",
                f"{seconds:.0f}",
                f"{report['peak_memory_bytes'] / 1e9:.1f}",
                *cells,
            )
    Console(width=180).print(table)


if __name__ == "__main__":
    typer.run(main)
