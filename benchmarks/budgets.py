"""Mixed plans against one format everywhere, at equal size, and which term of error chooses best.

    python benchmarks/budgets.py --model MODEL.onnx --calibration TEXT --evaluation TEXT

For each term, `qxc pareto` finds the plans; each is compiled and measured on the text, and so is every single format
that was compared and keeps one of the budgets. Beside a budget stands the best of the single formats that keep it. The
last table ranks the terms by the mean logarithm of their perplexity over that of the original.
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from quality import SMOLLM2, qxc
from rich.console import Console
from rich.table import Table

import qxcompiler
from demo import smollm2

BUDGETS = [2.5, 3.0, 3.25, 3.5, 4.0]
# without `measured`, which takes a run of the model for each choice
TERMS = ["divergence", "attention", "output", "curvature", "frobenius"]


def main(
    model: Path = SMOLLM2,
    calibration: Annotated[list[str], typer.Option(help="As of `qxc compile`.")] = ["self"],  # noqa: B006
    evaluation: Annotated[Path, typer.Option(help="The text to measure on.")] = Path("evaluation.txt"),
    weights: Annotated[str | None, typer.Option(help="As of `qxc compile`. [default: some of the target's]")] = None,
    quantizer: str = "gptq",
    term: Annotated[list[str], typer.Option(help="A term of `--error`; may be given several times.")] = TERMS,
    target: str = "cpu-x86",
    samples: int = 48,
    windows: int = 40,
) -> None:
    """Print a row for each budget, then the terms from the best on."""
    if model == SMOLLM2 and not model.exists():
        qxcompiler.export(smollm2(), model.parent)
    common = ["--target", target, "--quantizer", quantizer, "--samples", samples]
    common += [part for text in calibration for part in ("--calibration", text)]

    def measured(folder: Path, *options: object) -> dict[str, Any]:
        report = qxc("compile", model, *common, *options, "--no-verify", "-o", folder / "out")
        figures = qxc("eval", folder / "out" / "model.onnx", "--text", evaluation, "--reference", model, *count)
        print(*options, figures["perplexity"], figures["kl_divergence"], file=sys.stderr, flush=True)  # it takes hours
        return figures | {"bytes": report["bytes_after"]}

    count = ["--windows", windows]
    original = qxc("eval", model, "--text", evaluation, *count)["perplexity"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fronts = {each: front(model, folder / each, each, weights, common) for each in term}
        uniform = {}
        for point in next(iter(fronts.values()))["points"]:
            if point["budget"] is None and point["bits_per_weight"] <= max(BUDGETS):
                uniform[point["plan"]] = point | measured(folder, "--weights", point["plan"])
        table = Table("budget", "best single format", *(f"{each}: perplexity, KL" for each in term))
        sums = dict.fromkeys(term, 0.0)
        for bits in BUDGETS:
            fitting = [point for point in uniform.values() if point["bits_per_weight"] <= bits]
            best = min(fitting, key=lambda point: point["perplexity"], default=None)
            cells = [f"{best['plan']}: {best['perplexity']:.2f}, {best['kl_divergence']:.3f}" if best else ""]
            for each in term:
                plan = folder / each / f"plan-{bits:g}.yaml"
                if not plan.exists():  # fewer bits than the smallest formats take
                    cells.append("")
                    continue
                figures = measured(folder, "--plan", plan)
                sums[each] += math.log(figures["perplexity"] / original) / len(BUDGETS)
                cells.append(f"{figures['perplexity']:.2f}, {figures['kl_divergence']:.3f}")
            table.add_row(f"{bits:g}", *cells)
            print(bits, *cells, file=sys.stderr, flush=True)
        Console(width=180).print(table)
    ranking = Table("term", "mean log of the perplexity's ratio")
    for each in sorted(term, key=lambda each: sums[each]):
        ranking.add_row(each, f"{sums[each]:.4f}")
    Console().print(ranking)


def front(model: Path, folder: Path, term: str, weights: str | None, common: list[object]) -> dict[str, Any]:
    """The plans for all budgets, written to a folder, and what `qxc pareto` says of them."""
    step = min(b - a for a, b in itertools.pairwise(BUDGETS))
    budgets = f"{BUDGETS[0]}:{BUDGETS[-1]}:{step}"
    chosen = ["--weights", weights] if weights else []
    return qxc("pareto", model, *common, *chosen, "--error", term, "--budgets", budgets, "-o", folder)


if __name__ == "__main__":
    typer.run(main)
