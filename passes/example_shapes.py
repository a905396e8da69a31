"""Shapes of a model's values for choices of its free sizes, to read a graph by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qxcompiler.cost.shapes import Shapes
from qxcompiler.cost.workload import Phase, value_shapes
from qxcompiler.errors import ModelError
from qxcompiler_runtime.caches import is_past

__all__ = ["example_shapes"]

# Sizes that differ wherever they can: what is read of a graph for one has to hold for the other.
_PHASES = (Phase("tokens after others", 3, 5, batch=2), Phase("one token after others", 1, 7))


def example_shapes(model: ir.Model, samples: Sequence[Mapping[str, np.ndarray]]) -> list[Shapes]:
    """Of all values, for two choices of the free sizes: of tokens, or of the samples where tokens alone do not fit.

    Raises:
        ModelError: neither fits.
    """
    sizes = [_sizes(model, sample) for sample in samples[:2]]
    fixed = {name: size for name, size in (sizes or [{}])[0].items() if _PHASES[0].size_of(name, -1) is None}
    try:
        return [value_shapes(model, phase, fixed) for phase in _PHASES]
    except ModelError:
        keeps = any(is_past(value.name or "") for value in model.graph.inputs)
        if keeps or not sizes:  # samples begin with nothing kept, which tells too little
            raise
        return [value_shapes(model, _PHASES[0], each) for each in sizes]


def _sizes(model: ir.Model, sample: Mapping[str, np.ndarray]) -> dict[str, int]:
    """What the names of free sizes stand for in a sample."""
    sizes = {}
    for value in model.graph.inputs:
        given = sample.get(value.name or "")
        if given is not None and value.shape is not None and len(value.shape) == given.ndim:
            for dim, size in zip(value.shape, given.shape, strict=True):
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                    sizes[dim.value] = size
    return sizes
