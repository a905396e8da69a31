"""Which passes run when, in their order: the one place that lists them.

A package adds its own by an entry point of the group `qxcompiler.passes`: a class like those listed here, with an
attribute `stage`, `before_calibration` or `after_packing`. It runs after ours.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from qxcompiler.calibration.walk import Calibration
from qxcompiler.extensions import extensions
from qxcompiler.formats import CacheFormat
from qxcompiler.passes.choose_logits import ChooseLogits
from qxcompiler.passes.fold_batch_norm import FoldBatchNorm
from qxcompiler.passes.fuse_attention import FuseAttention
from qxcompiler.passes.fuse_bias import FuseBias
from qxcompiler.passes.fuse_norm import FuseNorm
from qxcompiler.passes.fuse_shared_input import FuseSharedInput
from qxcompiler.passes.fuse_swiglu import FuseSwiGlu
from qxcompiler.passes.quantize_cache import QuantizeCache
from qxcompiler.passes.share_cache import ShareCache
from qxcompiler.passes.smooth import Smooth
from qxcompiler.passes.unfold import Unfold

__all__ = ["after_packing", "before_calibration", "before_sites", "run"]

_log = logging.getLogger(__name__)

# Each leaves what the model computes unchanged, and makes it easier to quantize.
_BEFORE_CALIBRATION: tuple[Callable[[Calibration], ir.passes.InPlacePass], ...] = (Smooth,)
_AFTER_PACKING: tuple[Callable[[], ir.passes.InPlacePass], ...] = (FuseBias, FuseSwiGlu, FuseSharedInput)


def before_sites() -> list[ir.passes.InPlacePass]:
    """What folds a normalized model's operators into its layers, before sites of every kind are found."""
    return [ir.passes.common.IdentityEliminationPass(), FoldBatchNorm()]


def before_calibration(calibration: Calibration) -> list[ir.passes.InPlacePass]:
    """What changes a normalized model, whose sites are found, before statistics for its codes are collected."""
    return [make(calibration) for make in (*_BEFORE_CALIBRATION, *_added("before_calibration"))]


def after_packing(
    samples: Sequence[Mapping[str, Any]] = (), *, plain: bool = False, cache: CacheFormat | None = None
) -> list[ir.passes.InPlacePass]:
    """What makes fewer and larger operators of those in the sites' places, of attention, and of norms.

    Args:
        samples: of the model's inputs.
        plain: leave attention and norms as they are.
        cache: how attention keeps keys and values; None as it does.
    """
    passes = [make() for make in _AFTER_PACKING]
    if not plain:
        passes += [Unfold(samples), FuseAttention(samples), FuseNorm(samples), ShareCache(), ChooseLogits()]
    passes += [QuantizeCache(cache)] if cache else []
    return [*passes, *(make() for make in _added("after_packing"))]


def run(passes: Sequence[ir.passes.InPlacePass], model: ir.Model) -> bool:
    """Run passes one after the other, with their pre- and postconditions; whether one of them changed anything.

    What each did is logged. `ir.passes.Sequential` would do the same but for the log, and hide the errors of passes in
    its own.
    """
    modified = False
    for each in passes:
        before = _operators(model)
        modified |= each(model).modified
        after = _operators(model)
        changed = [name for name in sorted(before | after) if after[name] != before[name]]
        changes = [f"{after[name] - before[name]:+d} {name}" for name in changed]
        _log.info("%s: %s", type(each).__name__, ", ".join(changes) or "nothing to do")
    return modified


def _operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.all_nodes())


def _added(stage: str) -> list[Any]:
    return [made for made in extensions("passes").values() if getattr(made, "stage", None) == stage]
