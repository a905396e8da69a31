"""Side by side with other runtimes: tokens a second of a language model, read and written.

    python benchmarks/runtimes.py COMPILED/model.onnx [--peer NAME=MODEL ...] [--prompt-tokens 64] [--new-tokens 128]

A peer is one of `benchmarks/runtime_peers.py`: `llama.cpp=model.gguf`, `llama.cpp-q8_0=model.gguf`,
`onnxruntime-genai=folder`; or `qxc=other/model.onnx`. llama.cpp is in a virtual environment of the name `llama.cpp` in
the folder of environments (`make .cache/peers/llama.cpp`). All are measured in turn, each time in a process of its own.
Figures are medians over rounds. "reads" is the rate at which a plain loop over memory, in as many threads, could read
all bytes of the compiled model's weights.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from decode import bandwidth
from rich.console import Console
from rich.table import Table

from qxcompiler.graph import load_model

OURS = "qxc"


def measure(name: str, model: Path, environments: Path, threads: int, tokens: tuple[int, int]) -> dict[str, float]:
    """Tokens a second of one runtime, in a process of its own."""
    prompt, new = tokens
    if name == OURS:
        options = ["--prompt-tokens", prompt, "--new-tokens", new, "--threads", threads, "--repetitions", 3, "--json"]
        command = [sys.executable, "-m", "qxcompiler.cli", "bench", model, *options]
    else:
        own = environments / name.removesuffix("-q8_0") / "bin" / "python"
        python = own if own.exists() else sys.executable
        command = [python, "-P", Path(__file__).with_name("runtime_peers.py"), name, model, threads, prompt, new, 3]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise typer.BadParameter(f"{name}={model}: {done.stderr.strip().splitlines()[-1:]}")
    said = json.loads(done.stdout[done.stdout.index("{") :])
    if name != OURS:
        return {"prefill": said["prefill"], "decode": said["decode"]}
    (rate,) = said["rates"]
    return {"prefill": rate["prefill_tokens_per_second"], "decode": rate["decode_tokens_per_second"]}


def read_rate(threads: int) -> float:
    """Bytes a second that so many threads read from memory together."""
    with ThreadPoolExecutor(threads) as pool:
        return float(np.sum(list(pool.map(lambda _: bandwidth(), range(threads)))))


def main(
    model: Path,
    peer: Annotated[list[str], typer.Option(help="NAME=MODEL; may be given several times.")] = [],  # noqa: B006
    threads: Annotated[list[int], typer.Option(help="May be given several times.")] = [1, 2],  # noqa: B006
    prompt_tokens: int = 64,
    new_tokens: int = 128,
    rounds: int = 3,
    environments: Path = Path(".cache/peers"),
) -> None:
    """Print a table for each number of threads."""
    console = Console()
    named = [(OURS, model), *((name, Path(path)) for name, _, path in (each.partition("=") for each in peer))]
    initializers = load_model(model).graph.initializers.values()
    weights = sum(value.const_value.nbytes for value in initializers if value.const_value)
    for count in threads:
        found: dict[tuple[str, Path], list[dict[str, float]]] = defaultdict(list)
        reads = []
        for _ in range(rounds):
            reads.append(read_rate(count) / weights)
            for each in named:
                found[each].append(measure(*each, environments, count, (prompt_tokens, new_tokens)))
        medians = {
            each: {kind: statistics.median(rate[kind] for rate in rates) for kind in ("prefill", "decode")}
            for each, rates in found.items()
        }
        ours = medians[named[0]]
        title = f"{count} thread(s), {new_tokens} tokens after {prompt_tokens}"
        table = Table("runtime", "prefill, tokens/s", "ours / it", "decode, tokens/s", "ours / it", title=title)
        for (name, path), rates in medians.items():
            cells = [cell for kind in rates for cell in (f"{rates[kind]:.1f}", f"{ours[kind] / rates[kind]:.2f}")]
            table.add_row(f"{name} {path.parent.name if name == OURS else path.name}", *cells)
        limit = statistics.median(reads)
        table.add_row("reads", "", "", f"{limit:.1f}", f"{ours['decode'] / limit:.2f}")
        console.print(table)


if __name__ == "__main__":
    typer.run(main)
