"""A picture of the Pareto front. It imports matplotlib, which a compile does without."""

from __future__ import annotations

__all__ = ["draw"]

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure

from qxcompiler.formats import parse_format

if TYPE_CHECKING:
    from qxcompiler.report.pareto import Front

_NAMED = 60  # layers, at most, that have a label
_LABEL = 40  # characters of it


def draw(front: Front, path: Path) -> None:
    """Draw size against error, and the format of each layer in each plan, as an SVG; equal fronts give equal files."""
    with matplotlib.rc_context({"svg.hashsalt": "qxc"}):
        height = max(5.0, min(0.16 * len(front.layers), 12.0))
        figure = Figure(figsize=(15, height), layout="constrained")
        left, right = figure.subplots(1, 2)
        _curve(front, left)
        _heat_map(front, figure, right)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _curve(front: Front, axes: Axes) -> None:
    mixed = [(point.bytes / 1e6, point.expected_error) for point in front.mixed]
    axes.plot(*zip(*mixed, strict=True), "o-", label="best plans")
    for point in front.points:
        place = point.bytes / 1e6, point.expected_error
        if point.budget is None:
            axes.plot(*place, "x", color="grey")
            axes.annotate(point.plan, place, fontsize=7, color="grey")
        elif point.budget == front.marked:
            axes.plot(*place, "s", color="red", label=f"--bpw {front.marked:g}", zorder=3)
    axes.set_yscale("log" if all(point.expected_error > 0 for point in front.points) else "linear")
    axes.set(xlabel="linear layers, MB", ylabel=f"{front.term}, {front.unit}")
    axes.legend()


def _heat_map(front: Front, figure: Figure, axes: Axes) -> None:
    mixed = front.mixed
    names = {name for point in mixed for name in point.formats}
    formats = sorted(names, key=lambda name: (parse_format(name).bits, name))
    cells = [[formats.index(point.formats[layer]) for point in mixed] for layer in range(len(front.layers))]
    image = axes.imshow(
        cells,
        aspect="auto",
        interpolation="nearest",
        cmap=matplotlib.colormaps["viridis"].resampled(len(formats)),
        norm=BoundaryNorm([index - 0.5 for index in range(len(formats) + 1)], len(formats)),
    )
    for column, point in enumerate(mixed):
        if point.budget == front.marked:
            axes.axvline(column, color="red", linewidth=1)
    axes.set_xticks(range(len(mixed)), [f"{point.budget:g}" for point in mixed], rotation=90, fontsize=7)
    shown = range(0, len(front.layers), -(-len(front.layers) // _NAMED))
    axes.set_yticks(shown, [front.layers[layer][-_LABEL:].replace("$", r"\$") for layer in shown], fontsize=6)
    axes.set(xlabel="budget, bits a weight")
    bar = figure.colorbar(image, ax=axes, ticks=range(len(formats)))
    bar.ax.set_yticklabels(formats, fontsize=7)
