"""MXQ (Zhang et al. 2024), reproduced: mixed HQQ formats under a budget against one format everywhere.

    python benchmarks/mxq.py MODEL.onnx [--every 8]

Every linear layer gets b1 bits in groups of g1, with scales and zero points of 8 bits in groups of 128 of them, by our
`hqq`. Errors are |W - Ŵ|², summed over the layers. For each uniform format the budget is what it takes: the mixed plan
has to lose less. Storage is the paper's equation 2.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from qxcompiler.allocation.program import Group, Solution, solve
from qxcompiler.formats import IntegerFormat
from qxcompiler.graph import find_sites, load_model, normalize
from qxcompiler.quantizers.hqq import hqq

METADATA_BITS, METADATA_GROUP = 8, 128  # b2, g2


@dataclass(frozen=True)
class HqqFormat:
    """Codes of b1 bits; a scale and a zero point for every g1 of them."""

    b1: int
    g1: int

    @property
    def name(self) -> str:
        """Such as `b4g64`."""
        return f"b{self.b1}g{self.g1}"

    @property
    def bits_per_weight(self) -> float:
        """b1 + 2 b2 / g1 + 32 / (g1 g2): a group of metadata has a scale and a zero point of 16 bits itself."""
        return self.b1 + 2 * METADATA_BITS / self.g1 + 32 / (self.g1 * METADATA_GROUP)

    def error(self, weight: torch.Tensor) -> float:
        """|W - Ŵ|² of a matrix [N, K]."""
        quantized = hqq(weight, IntegerFormat(self.b1, self.g1, asymmetric=True), None)
        # zero points are whole numbers of b1 bits already
        grid = replace(quantized.grid, scales=metadata(quantized.grid.scales))
        return float((weight - grid.decode(grid.encode(weight, slice(None)), slice(None))).square().sum())


FORMATS = [HqqFormat(b1, g1) for b1 in (2, 3, 4, 8) for g1 in (32, 64, 128)]


def metadata(scales: torch.Tensor) -> torch.Tensor:
    """Scales as 8-bit codes in groups of 128, each between the group's smallest and largest."""
    flat = torch.nn.functional.pad(
        scales.reshape(-1), (0, -scales.numel() % METADATA_GROUP), value=float(scales.mean())
    )
    groups = flat.view(-1, METADATA_GROUP)
    low, high = groups.amin(1, keepdim=True).half().float(), groups.amax(1, keepdim=True)
    step = ((high - low) / (2**METADATA_BITS - 1)).half().float().clamp(min=2.0**-24)
    codes = ((groups - low) / step).round().clamp(0, 2**METADATA_BITS - 1)
    return (low + codes * step).clamp(min=2.0**-24).view(-1)[: scales.numel()].view_as(scales)


def groups_of(weights: Sequence[torch.Tensor]) -> list[Group]:
    """What each matrix loses and takes in every format; it takes `bits`."""
    return [
        Group(
            [each.error(weight) for each in FORMATS],
            {"bits": [each.bits_per_weight * weight.numel() for each in FORMATS]},
        )
        for weight in weights
    ]


def mixed(groups: Sequence[Group], bits_per_weight: float) -> Solution:
    """The best plan for a budget."""
    weights = sum(group.costs["bits"][0] / FORMATS[0].bits_per_weight for group in groups)
    return solve(groups, {"bits": bits_per_weight * weights * (1 + 1e-12)})  # sums of fractions round


def main(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx")],
    every: Annotated[int, typer.Option(min=1, help="Take every so many layers only.")] = 1,
) -> None:
    """Print a row for each uniform format."""
    graph = load_model(model)
    normalize(graph)
    sites = [site for site in find_sites(graph) if site.kind == "linear" and site.role != "head"][::every]
    start = time.perf_counter()
    groups = groups_of([site.weight.matrix() for site in sites])
    print(f"{len(groups)} layers in {len(FORMATS)} formats: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    table = Table("uniform", "bits", "error", "mixed: bits", "error", "ratio", "s")
    for index, fmt in enumerate(FORMATS):
        uniform = sum(group.errors[index] for group in groups)
        start = time.perf_counter()
        solution = mixed(groups, fmt.bits_per_weight)
        seconds = time.perf_counter() - start
        weights = sum(group.costs["bits"][index] for group in groups) / fmt.bits_per_weight
        used = solution.costs["bits"] / weights
        row = (f"{uniform:.4g}", f"{used:.4f}", f"{solution.error:.4g}", f"{solution.error / uniform:.3f}")
        table.add_row(fmt.name, f"{fmt.bits_per_weight:.2f}", *row, f"{seconds:.2f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
