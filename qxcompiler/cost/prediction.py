"""Which phases a model runs in, and what each costs on a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from qxcompiler.cost.estimate import Estimate, estimate
from qxcompiler.cost.workload import Phase, workload
from qxcompiler.formats import Scheme
from qxcompiler.graph import Site
from qxcompiler.targets import Target
from qxcompiler_runtime.caches import is_past

__all__ = ["CONTEXT", "phases", "predict", "untold_sizes"]

CONTEXT = 512
"""Tokens before the one that is decoded, or in an input, where nobody says how many."""


def phases(model: ir.Model, context: int) -> list[Phase]:
    """Decoding and prefill, of a model that keeps keys and values; one pass, of any other.

    Args:
        model: normalized.
        context: how many tokens there are before the one that is decoded, or in a prompt or an input.
    """
    if any(is_past(value.name or "") for value in model.graph.inputs):
        return [Phase.decode(context), Phase.prefill(context)]
    return [Phase.encoder(context)]


def untold_sizes(model: ir.Model, samples: Sequence[Mapping[str, npt.NDArray[Any]]]) -> dict[str, int]:
    """The free sizes of inputs that no phase tells, such as an image's, by their symbols: those of the first sample."""
    phase, *_ = phases(model, CONTEXT)
    shapes = {name: array.shape for name, array in samples[0].items()} if samples else {}
    free = [
        (dim.value, axis, shapes[value.name or ""][axis])
        for value in model.graph.inputs
        if value.name in shapes and value.shape is not None and len(value.shape) == len(shapes[value.name])
        for axis, dim in enumerate(value.shape)
        if isinstance(dim, ir.SymbolicDim)
    ]
    return {symbol: size for symbol, axis, size in free if symbol and phase.size_of(symbol, axis) is None}


def predict(
    model: ir.Model,
    sites: Sequence[Site],
    target: Target,
    *,
    context: int,
    sizes: Mapping[str, int] | None = None,
    plan: Mapping[str, Scheme | None] | None = None,
) -> list[Estimate]:
    """What each phase of a model costs on a target.

    Args:
        model: normalized; an original, or a compiled one.
        sites: its sites.
        target: the hardware.
        context: as for `phases`.
        sizes: free sizes of inputs that phases do not tell, by their symbols.
        plan: the scheme of every site; those that it does not name are in float.

    Raises:
        ModelError, TargetError, UnsupportedByTargetError: as `workload` and `estimate`.
    """
    target.check_cost()
    return [estimate(workload(model, sites, phase, sizes), target, plan) for phase in phases(model, context)]
