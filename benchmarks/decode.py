"""Where the time of one decoded token goes, by kind of operator, and what reading memory would take.

    python benchmarks/decode.py MODEL.onnx --context 64 --context 2000 --threads 1

For every context, a prompt of random tokens fills the cache; then single tokens are timed. A token's time is the median
without onnxruntime's profiler; its shares are those of a session with it. "memory" is the time that a plain read of all
weights and of the cache takes, at the bandwidth of a loop over far more than a cache holds, in the same process.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter, defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import onnxruntime
import typer
from rich.console import Console
from rich.table import Table

from qxcompiler.evaluation.running import Runner
from qxcompiler.graph import load_model
from qxcompiler_runtime import ops_library
from qxcompiler_runtime.decoder import Decoder

TOKENS, WARM_UP = 24, 4
READ_BYTES = 1 << 29


class Profiled(Runner):
    """A model in a session of its own options."""

    def __init__(self, path: Path, threads: int, prefix: Path | None) -> None:
        self.path = path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.register_custom_ops_library(str(ops_library()))
        if prefix:
            options.enable_profiling = True
            options.profile_file_prefix = str(prefix)
        self._own = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    @property
    def session(self) -> onnxruntime.InferenceSession:
        """The session."""
        return self._own


def decoded(runner: Runner, context: int, vocabulary: int) -> tuple[list[float], int]:
    """Seconds of single tokens after so many others, and bytes of their keys and values."""
    draws = np.random.default_rng(0)
    decoder = Decoder(runner)
    decoder.step([draws.integers(0, vocabulary, context).tolist()])
    times = []
    for token in draws.integers(0, vocabulary, TOKENS + WARM_UP).tolist():
        start = time.perf_counter()
        decoder.step([[token]])
        times.append(time.perf_counter() - start)
    cache = sum(value.numpy()[:, :, :context].nbytes for value in decoder.past.values())
    return times[WARM_UP:], cache


def shares(trace: Path) -> tuple[dict[str, float], Counter[str]]:
    """Seconds a token by kind of operator, and nodes, of the last tokens of a profile."""
    events = [event for event in json.loads(trace.read_text()) if event.get("cat") == "Node"]
    runs: dict[str, list[tuple[int, int]]] = defaultdict(list)
    kinds: dict[str, str] = {}
    for event in events:
        if event["name"].endswith("_kernel_time"):
            name = event["name"]
            runs[name].append((event["ts"], event["dur"]))
            kinds[name] = event["args"]["op_name"]
    seconds: dict[str, float] = defaultdict(float)
    nodes: Counter[str] = Counter()
    for name, found in runs.items():
        seconds[kinds[name]] += 1e-6 * statistics.median(duration for _, duration in sorted(found)[-TOKENS:])
        nodes[kinds[name]] += 1
    return dict(seconds), nodes


def bandwidth() -> float:
    """Bytes a second that one thread reads from memory: the best of several passes over a large array."""
    array = np.ones(READ_BYTES // 8)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        float(array.sum())
        times.append(time.perf_counter() - start)
    return READ_BYTES / min(times)


def main(
    model: Path,
    context: Annotated[list[int], typer.Option(help="Tokens in the cache; may be given several times.")] = [64, 1024],  # noqa: B006
    threads: int = 1,
) -> None:
    """Print a table for each context."""
    console = Console()
    graph = load_model(model)
    weights = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value)
    vocabulary = int(json.loads((model.parent / "config.json").read_text())["vocab_size"])
    rate = bandwidth()
    plain = Profiled(model, threads, None)
    with TemporaryDirectory() as folder:
        for length in context:
            times, cache = decoded(plain, length, vocabulary)
            profiled = Profiled(model, threads, Path(folder, f"{length}"))
            decoded(profiled, length, vocabulary)
            seconds, nodes = shares(Path(profiled.session.end_profiling()))
            token = statistics.median(times)
            title = f"{length} tokens in the cache: {1e3 * token:.2f} ms, {1 / token:.1f} tokens/s, {threads} thread(s)"
            table = Table("operator", "nodes", "ms", "share", title=title, title_justify="left")
            for kind, spent in sorted(seconds.items(), key=lambda entry: -entry[1]):
                if spent > 0.005 * sum(seconds.values()):
                    row = (str(nodes[kind]), f"{1e3 * spent:.3f}", f"{spent / sum(seconds.values()):.1%}")
                    table.add_row(kind, *row)
            table.add_row("all", str(sum(nodes.values())), f"{1e3 * sum(seconds.values()):.3f}", "")
            read = (weights + cache) / rate
            table.add_row("memory", "", f"{1e3 * read:.3f}", f"{read / token:.1%} of the token")
            console.print(table)
            console.print(f"weights {weights / 1e6:.1f} MB, cache {cache / 1e6:.1f} MB, read at {rate / 1e9:.1f} GB/s")


if __name__ == "__main__":
    typer.run(main)
