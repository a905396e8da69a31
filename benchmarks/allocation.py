"""How long the mixed-integer program takes, and how much of the budget it uses, for a model of 80 blocks.

    python benchmarks/allocation.py

80 blocks of 7 layers in the shapes of a 70-billion-parameter Llama, each with 24 schemes: 2, 3, 4, 5, 6 and 8 bits in
groups of 32, 64, 128 and 256. Errors fall by 4 for each bit, times what a layer's sensitivity and chance make of it.
"""

from __future__ import annotations

import time

import numpy as np
from rich.console import Console
from rich.table import Table

from qxcompiler.allocation.program import Group, solve

BLOCKS = 80
SHAPES = [(8192, 8192), (1024, 8192), (1024, 8192), (8192, 8192), (28672, 8192), (28672, 8192), (8192, 28672)]
BITS = (np.array([2, 3, 4, 5, 6, 8])[:, None] + 16 / np.array([32, 64, 128, 256])).ravel()


def groups(seed: int) -> list[Group]:
    """Every layer of the model."""
    draws = np.random.default_rng(seed)
    sizes = [N * K for _ in range(BLOCKS) for N, K in SHAPES]
    return [
        Group(
            draws.lognormal(0, 1.5) * size * 4.0**-BITS * draws.lognormal(0, 0.05, len(BITS)),
            {"bytes": size * BITS / 8},
        )
        for size in sizes
    ]


def main() -> None:
    """Print a row for each budget."""
    table = Table("seed", "bits a weight", "s", "of the budget", "above the relaxation")
    for seed in range(3):
        layers = groups(seed)
        weights = sum(N * K for N, K in SHAPES) * BLOCKS
        for bits in (2.25, 2.5, 3.0, 3.14, 4.0, 5.5):
            limit = bits * weights / 8
            start = time.perf_counter()
            solution = solve(layers, {"bytes": limit})
            seconds = time.perf_counter() - start
            gap = solution.error / solution.relaxation.error - 1
            table.add_row(
                f"{seed}", f"{bits:g}", f"{seconds:.2f}", f"{solution.costs['bytes'] / limit:.5%}", f"{gap:.1e}"
            )
    Console().print(table)


if __name__ == "__main__":
    main()
