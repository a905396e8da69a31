"""What a compile decided, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from pydantic import BaseModel

from qxcompiler.allocation import FLOAT, Account, Plan, sites_by_weight
from qxcompiler.cost import CONTEXT, Estimate, predict
from qxcompiler.dialects import Dialect
from qxcompiler.errors import QxcError
from qxcompiler.evaluation import Verification
from qxcompiler.graph import Site, Weight, find_sites
from qxcompiler.perplexity_limit import PerplexityLimit
from qxcompiler.quantizers import QuantizationResult
from qxcompiler.report.coverage import Unquantized, coverage
from qxcompiler.targets import Target
from qxcompiler.tuning import Tuning
from qxcompiler_runtime.caches import CACHE_FORMAT, is_past

__all__ = ["Report", "SiteReport", "SitesReport", "report_cache", "report_costs", "report_sites"]


class SiteReport(BaseModel):
    """One site.

    Attributes:
        name: of its node.
        role: what the layer does in its block.
        block: which transformer block; None outside them.
        in_features: K.
        out_features: N.
        scheme: weight format and activation precision, or `float`.
        reason: why it was left in float, None where it was not.
        quantizer: the algorithm that chose the codes, None where left in float.
        bits_per_weight: everything stored for the weight, over its number of weights.
        bytes: what the weight takes; 0 where an earlier site has the same weight.
        error: relative error of the layer's output over the calibration samples (of the weight itself where the
            quantizer had no statistics), before tuning; None where left in float.
        considered: where formats were compared, what this layer alone would lose in each, as `allocation` counts it.
    """

    name: str
    role: str
    block: int | None
    in_features: int
    out_features: int
    scheme: str
    reason: str | None
    quantizer: str | None
    bits_per_weight: float
    bytes: int
    error: float | None
    considered: dict[str, float] | None


class Report(BaseModel):
    """The whole compile.

    Attributes:
        target: name of the hardware descriptor.
        samples: how many calibration samples were used.
        quantized_bits_per_weight: over the quantized weights, each counted once; None where all stay in float.
        bits_per_weight: over the weights of all sites, those left in float too.
        model_bits_per_weight: over all weights of the model, those that belong to no site too.
        bytes_before: size of the model's files.
        bytes_after: size of the compiled model's files.
        kv: what keys and values are kept as; None where none are.
        kv_bytes_per_token: what they take for a token, all layers together; None where a size is not known.
        peak_memory_bytes: resident memory of the process at most, until the report was written.
        allocation: what a budget was spent on, None where there was none.
        perplexity_limit: how a limit of perplexity was kept, None where there was none.
        predicted: what the compiled model costs on the target, phase by phase, after 512 tokens or on an input of 512;
            of its nodes, those with a weight.
        not_predicted: why nothing was predicted, None where something was.
        tuning: what tuning reached, None where there was none.
        verification: None where nothing was verified; `warnings` says why.
        warnings: what a user should know.
        unquantized: what was not quantized, and why, the most bytes first.
        sites: a row a site, in the order of the graph.
    """

    target: str
    samples: int
    quantized_bits_per_weight: float | None
    bits_per_weight: float
    model_bits_per_weight: float
    bytes_before: int
    bytes_after: int
    kv: str | None = None
    kv_bytes_per_token: int | None = None
    peak_memory_bytes: int
    allocation: Account | None = None
    perplexity_limit: PerplexityLimit | None = None
    predicted: list[Estimate] = []
    not_predicted: str | None = None
    tuning: Tuning | None
    verification: Verification | None
    warnings: list[str]
    unquantized: list[Unquantized]
    sites: list[SiteReport]


@dataclass(frozen=True)
class SitesReport:
    """What `Report` says of sites and weights, in its words."""

    sites: list[SiteReport]
    unquantized: list[Unquantized]
    quantized_bits_per_weight: float | None
    bits_per_weight: float
    model_bits_per_weight: float


def report_sites(
    model: ir.Model,
    sites: Sequence[Site],
    plan: Plan,
    results: Mapping[Weight, QuantizationResult],
    dialect: Dialect,
) -> SitesReport:
    """A row a site, what was not quantized, and bits per weight; of a model whose sites are not replaced yet."""
    rows = []
    first = {users[0] for users in sites_by_weight(sites).values()}
    packed, stored = _Sum(), _Sum()
    for site in sites:
        scheme, result = plan[site.name], results.get(site.weight)
        N, K = site.out_features, site.in_features
        size = dialect.weight_bytes(scheme.format, site.weight) if scheme else site.weight.nbytes
        if site in first:
            (packed if scheme else stored).add(size, N * K)
        rows.append(
            SiteReport(
                name=site.name,
                role=site.role,
                block=site.block,
                in_features=K,
                out_features=N,
                scheme=str(scheme or FLOAT),
                reason=plan.reasons.get(site.name),
                quantizer=result.quantizer if result else None,
                bits_per_weight=8 * size / (N * K),
                bytes=size if site in first else 0,
                error=result.error if result else None,
                considered=plan.errors.get(site.name),
            )
        )
    values = {site.weight.value for site in sites if plan[site.name]}
    reasons = {site.weight.value: plan.reasons[site.name] for site in sites if not plan[site.name]}
    rest = coverage(model, values, packed.bytes, reasons)
    return SitesReport(
        sites=rows,
        unquantized=rest.rows,
        quantized_bits_per_weight=packed.bits_per_weight if packed.weights else None,
        bits_per_weight=(packed + stored).bits_per_weight,
        model_bits_per_weight=(packed + _Sum(rest.weight_bytes, rest.weights)).bits_per_weight,
    )


def report_costs(model: ir.Model, target: Target, sizes: Mapping[str, int]) -> dict[str, Any]:
    """What `Report` says of a compiled model's costs, `predicted` and `not_predicted`.

    Args:
        model: compiled.
        target: what it was compiled for.
        sizes: as for `predict`.
    """
    try:
        estimates = predict(model, find_sites(model), target, context=CONTEXT, sizes=sizes)
    except QxcError as error:
        return {"predicted": [], "not_predicted": str(error)}
    said = [
        each.model_copy(update={"items": [item for item in each.items if item.scheme is not None]})
        for each in estimates
    ]
    return {"predicted": said, "not_predicted": None}


def report_cache(model: ir.Model) -> dict[str, Any]:
    """What `Report` says of the keys and values that a compiled model keeps, `kv` and `kv_bytes_per_token`."""
    pasts = [value for value in model.graph.inputs if is_past(value.name or "")]
    if not pasts or pasts[0].dtype is None:
        return {}
    rows = [_row_bytes(past) for past in pasts]
    return {
        "kv": model.metadata_props.get(CACHE_FORMAT, pasts[0].dtype.numpy().name),
        "kv_bytes_per_token": None if None in rows else sum(size or 0 for size in rows),
    }


def _row_bytes(past: ir.Value) -> int | None:
    """What a token takes in [B, G, P, row]."""
    if past.dtype is None or past.shape is None or len(past.shape) != 4:
        return None
    heads, size = past.shape[1], past.shape[3]
    return heads * size * past.dtype.bitwidth // 8 if isinstance(heads, int) and isinstance(size, int) else None


@dataclass
class _Sum:
    bytes: int = 0
    weights: int = 0

    def add(self, size: int, weights: int) -> None:
        self.bytes += size
        self.weights += weights

    def __add__(self, other: _Sum) -> _Sum:
        return _Sum(self.bytes + other.bytes, self.weights + other.weights)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.weights
