"""Predicted against measured: a token of a Llama with random packed weights (0.5 billion parameters), in many schemes.

    qxc profile -o host.yaml --threads 1
    python benchmarks/cost_decode.py --target host.yaml

The descriptor's `measured.threads` is the number of threads. The time of a token is the median of rounds in which all
models take turns.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from synthetic_llama import PROMPT, Decoder, Llama, build

from qxcompiler.cost import predict
from qxcompiler.formats import Scheme
from qxcompiler.graph import find_sites, load_model, normalize, save_model
from qxcompiler.targets import load_target

SCHEMES = [
    "int2g128/a8", "int2g128/a16", "int3g128/a8", "int4g128/a8", "int4g128/a16", "int6g128/a8", "int8g128/a8",
    "lut3g128/a16", "lut4g128/a8", "mxfp4/a8",
]  # fmt: skip
TOKENS, ROUNDS = 16, 5


def main() -> None:
    """Print a row a scheme, the mean absolute error, and the rank correlation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True, help="a descriptor with `measured`")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--blocks", type=int, default=Llama.blocks)
    arguments = parser.parse_args()
    target = load_target(arguments.target)
    if target.measured is None:
        parser.error("the target has nothing measured: make one with `qxc profile`")
    threads, sizes = target.measured.threads, replace(Llama(), blocks=arguments.blocks)
    predicted, decoders = [], []
    with TemporaryDirectory() as name:
        for index, scheme in enumerate(arguments.schemes):
            folder = Path(name, str(index))
            folder.mkdir()
            save_model(build(sizes, Scheme.parse(scheme)), folder)
            model = load_model(folder / "model.onnx")
            normalize(model)
            context = len(PROMPT) + TOKENS // 2
            predicted.append(predict(model, find_sites(model), target, context=context)[0])
            decoders.append(Decoder(folder / "model.onnx", sizes, threads))
        times: list[list[float]] = [[] for _ in decoders]
        for _ in range(ROUNDS):
            for decoder, found in zip(decoders, times, strict=True):
                found += decoder.seconds(TOKENS)
    measured = [statistics.median(found) for found in times]
    table = Table("scheme", "predicted ms", "measured ms", "difference", "bound by", title=f"{threads} threads")
    errors = []
    for scheme, guess, seconds in zip(arguments.schemes, predicted, measured, strict=True):
        errors.append(guess.seconds / seconds - 1)
        bound = next(iter(guess.bound_by))
        table.add_row(scheme, f"{1e3 * guess.seconds:.2f}", f"{1e3 * seconds:.2f}", f"{errors[-1]:+.1%}", bound)
    Console(width=120).print(table)
    correlation = spearmanr([guess.seconds for guess in predicted], measured).statistic
    print(f"mean absolute error {statistics.mean(map(abs, errors)):.1%}, rank correlation {correlation:.3f}")


if __name__ == "__main__":
    main()
