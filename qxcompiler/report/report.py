"""What a compile decided, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel

from qxcompiler.allocation import FLOAT, Plan, sites_by_weight
from qxcompiler.evaluation import Verification
from qxcompiler.graph import Site, Weight
from qxcompiler.packing import packed_bytes
from qxcompiler.quantizers import QuantizationResult

__all__ = ["Report", "SiteReport", "report_sites"]


class SiteReport(BaseModel):
    """One site.

    Attributes:
        name: of its node.
        role: what the layer does in its block.
        block: which transformer block; None outside them.
        in_features: K.
        out_features: N.
        scheme: weight format and activation precision, or `float`.
        quantizer: the algorithm that chose the codes, None where left in float.
        bits_per_weight: everything stored for the weight, over its number of weights.
        bytes: what the weight takes; 0 where an earlier site has the same weight.
        error: relative error of the layer's output over the calibration samples (of the weight itself where the
            quantizer had no statistics), None where left in float.
    """

    name: str
    role: str
    block: int | None
    in_features: int
    out_features: int
    scheme: str
    quantizer: str | None
    bits_per_weight: float
    bytes: int
    error: float | None


class Report(BaseModel):
    """The whole compile.

    Attributes:
        target: name of the hardware descriptor.
        samples: how many calibration samples were used.
        bits_per_weight: over the quantized weights, each counted once.
        bytes_before: size of the model's files.
        bytes_after: size of the compiled model's files.
        verification: None where there were no samples to verify on.
        warnings: what a user should know.
        sites: a row a site, in the order of the graph.
    """

    target: str
    samples: int
    bits_per_weight: float
    bytes_before: int
    bytes_after: int
    verification: Verification | None
    warnings: list[str]
    sites: list[SiteReport]


def report_sites(
    sites: Sequence[Site], plan: Plan, results: Mapping[Weight, QuantizationResult]
) -> tuple[list[SiteReport], float]:
    """A row a site, and the bits per weight over the quantized weights."""
    rows = []
    first = {users[0] for users in sites_by_weight(sites).values()}
    total_bytes = total_weights = 0
    for site in sites:
        N, K = site.out_features, site.in_features
        scheme, result = plan[site.name], results.get(site.weight)
        stored = packed_bytes(scheme.format, N, K) if scheme else site.weight.nbytes
        if scheme and site in first:
            total_bytes += stored
            total_weights += N * K
        rows.append(
            SiteReport(
                name=site.name,
                role=site.role,
                block=site.block,
                in_features=K,
                out_features=N,
                scheme=str(scheme or FLOAT),
                quantizer=result.quantizer if result else None,
                bits_per_weight=8 * stored / (N * K),
                bytes=stored if site in first else 0,
                error=result.error if result else None,
            )
        )
    return rows, 8 * total_bytes / total_weights
