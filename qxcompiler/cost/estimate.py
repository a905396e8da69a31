"""What a whole model costs on a target in one phase: latency, tokens a second, energy, memory, and what binds where."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from qxcompiler.cost.product import (
    HOST,
    OVERHEAD,
    Cost,
    cache_bytes,
    cost_of_attention_product,
    cost_of_product,
    elementwise_cost,
    total,
    value_bytes,
)
from qxcompiler.cost.workload import Item, Product, Workload
from qxcompiler.errors import UnsupportedByTargetError
from qxcompiler.formats import Scheme
from qxcompiler.packing.tile16 import TILE_ROWS, packed_bytes
from qxcompiler.targets import Target

__all__ = ["Estimate", "ItemEstimate", "estimate", "item_cost"]

_FLOAT_BYTES = 4
_Known = dict[tuple[Product, Scheme | None], Cost]


class ItemEstimate(BaseModel):
    """What one node costs.

    Attributes:
        name: of the node.
        operator: what it is.
        scheme: of its weight; None where it has none, `float` where it stays in float.
        seconds: with starting it.
        bound_by: what works longest: a compute unit, `vector unit`, `kernel` (measured), a memory, `host`, `overhead`.
        macs: multiply-accumulates.
        bytes: moved at each memory.
        joules: None where the descriptor lacks an energy.
    """

    name: str
    operator: str
    scheme: str | None
    seconds: float
    bound_by: str
    macs: int
    bytes: dict[str, float]
    joules: float | None


class Estimate(BaseModel):
    """What a model costs.

    Attributes:
        target: its name.
        phase: what was computed.
        seconds: of one run.
        tokens_per_second: tokens (or frames, or images) of the run, over its seconds.
        joules: of one run; None where the descriptor lacks an energy.
        bound_by: seconds of the nodes that each resource binds, the most first.
        bytes: moved at each memory.
        weight_bytes: of all weights and other constants.
        activation_bytes: of what is needed at once, at most.
        kv_cache_bytes: of keys and values that are kept, before and after the run, or once where both are one memory.
        unknown: nodes that are counted nowhere, because their shapes do not follow from those of the inputs.
        items: a node each.
    """

    target: str
    phase: str
    seconds: float
    tokens_per_second: float
    joules: float | None
    bound_by: dict[str, float]
    bytes: dict[str, float]
    weight_bytes: int
    activation_bytes: int
    kv_cache_bytes: int
    unknown: list[str]
    items: list[ItemEstimate]

    @property
    def peak_bytes(self) -> int:
        """All that memory holds at once."""
        return self.weight_bytes + self.activation_bytes + self.kv_cache_bytes


def estimate(work: Workload, target: Target, plan: Mapping[str, Scheme | None] | None = None) -> Estimate:
    """What a workload costs on a target.

    Args:
        work: a model in a phase.
        target: the hardware.
        plan: the scheme of every site by its name, None for one in float; sites that it does not name are in float.

    Raises:
        TargetError: the descriptor lacks a section that the cost model reads, or a memory is too small for a tile.
        UnsupportedByTargetError: nothing on the target, nor a host beside it, runs a node.
    """
    target.check_cost()
    plan = plan or {}
    rows: list[ItemEstimate] = []
    known: _Known = {}
    for item in work.items:
        scheme = plan.get(item.name) if item.is_site else item.scheme
        cost = item_cost(target, item, scheme, known)
        has_weight = item.is_site or item.scheme is not None
        rows.append(
            ItemEstimate(
                name=item.name,
                operator=item.operator,
                scheme=str(scheme or "float") if has_weight else None,
                seconds=cost.seconds,
                bound_by=cost.binding,
                macs=sum(product.macs for product in item.products),
                bytes={level: moved.read + moved.written for level, moved in cost.traffic.items()},
                joules=cost.joules,
            )
        )
    seconds = sum(row.seconds for row in rows)
    bound: dict[str, float] = {}
    moved: dict[str, float] = {}
    for row in rows:
        bound[row.bound_by] = bound.get(row.bound_by, 0.0) + row.seconds
        for level, size in row.bytes.items():
            moved[level] = moved.get(level, 0.0) + size
    joules = [row.joules for row in rows]
    value = value_bytes(target)
    return Estimate(
        target=target.name,
        phase=work.phase.name,
        seconds=seconds,
        tokens_per_second=work.tokens / seconds if seconds else 0.0,
        joules=None if None in joules else sum(each for each in joules if each is not None),
        bound_by=dict(sorted(bound.items(), key=lambda entry: -entry[1])),
        bytes=moved,
        weight_bytes=sum(_stored(weight, plan) for weight in work.weights) + work.constants * _FLOAT_BYTES,
        activation_bytes=work.live * value,
        kv_cache_bytes=work.cached * value + work.cached_bytes,
        unknown=list(work.unknown),
        items=rows,
    )


def _stored(weight: tuple[int, int, str | Scheme | None], plan: Mapping[str, Scheme | None]) -> int:
    N, K, named = weight
    scheme = plan.get(named) if isinstance(named, str) else named
    return packed_bytes(scheme.format, N, K) if scheme else N * K * _FLOAT_BYTES


def item_cost(target: Target, item: Item, scheme: Scheme | None, known: _Known | None = None) -> Cost:
    """What one node costs, with starting it.

    Args:
        target: the hardware.
        item: the node.
        scheme: of its weight; None for float, and where it has none.
        known: what products were found to cost, for a caller who asks for many nodes of one target.

    Raises:
        TargetError, UnsupportedByTargetError: as `estimate`.
    """
    known = {} if known is None else known
    if item.operator in target.operators.lacking:
        return _on_host(target, item, scheme)
    try:
        parts = [_product(target, product, scheme, known) for product in item.products]
    except UnsupportedByTargetError:
        if scheme is not None or target.operators.host is None:
            raise
        return _on_host(target, item, scheme)
    rest = _rest(target, item, scheme)
    if any(rest.busy.values()):
        parts.append(rest)
    overhead = target.measured.operator_overhead_seconds if target.measured else None
    if overhead is None:
        overhead = (target.operator_overhead_cycles or 0.0) / (target.core_clock_hz or 1.0)
    return total([Cost(overhead, {OVERHEAD: overhead}, {}, 0.0), *parts])


def _product(target: Target, product: Product, scheme: Scheme | None, known: _Known) -> Cost:
    found = known.get((product, scheme))
    if found is None:
        M, N, K = product.rows, product.out_features, product.in_features
        if product.between:
            once = cost_of_attention_product(target, M, N, K, cached=product.cached, kept_bytes=product.kept_bytes)
        else:
            once = cost_of_product(target, M, N, K, scheme)
        found = known[product, scheme] = once.times(product.copies)
    return found


def _rest(target: Target, item: Item, scheme: Scheme | None) -> Cost:
    """What a node does besides its products."""
    mode = target.memory_mode
    assert mode is not None
    value = value_bytes(target)
    stays = (item.read + item.written) * value <= cache_bytes(target) // 2
    home = mode.cache if stays else mode.activations
    read = {home: item.read * value}
    kept = item.written_cached * (item.kept_bytes or value)
    written = {home: item.written * value, mode.kv_cache: kept}
    if mode.kv_cache == home:
        written[home] = item.written * value + kept
    for level, size in (
        (mode.kv_cache, item.read_cached * value),
        (mode.weights, _constant_bytes(target, item, scheme)),
    ):
        read[level] = read.get(level, 0) + size
    return elementwise_cost(target, read, written, item.results)


def _constant_bytes(target: Target, item: Item, scheme: Scheme | None) -> int:
    """What a node reads of constants that are no operands of products."""
    if item.looked_up is None:
        return item.read_constant * _FLOAT_BYTES
    rows, N, K = item.looked_up
    if scheme is None:
        return rows * K * _FLOAT_BYTES
    assert target.memory is not None and target.memory_mode is not None
    # a row lies in pieces of four bytes, among those of the fifteen other rows of its tile
    tiles, level = -(-N // TILE_ROWS), target.memory[target.memory_mode.weights]
    pieces = min(TILE_ROWS, max(1, level.burst_length_bytes // 4))
    return rows * packed_bytes(scheme.format, N, K) // (tiles * TILE_ROWS) * pieces


def _on_host(target: Target, item: Item, scheme: Scheme | None) -> Cost:
    """A node that the target cannot run."""
    host = target.operators.host
    if host is None:
        problem, remedy = f"has no operator {item.operator}", "describe a host that runs it (operators.host)"
        raise UnsupportedByTargetError(f"target {target.name}", problem, remedy)
    moved = (item.read + item.written + item.read_cached + item.written_cached) * value_bytes(target)
    moved += _constant_bytes(target, item, scheme)
    macs = item.results
    for product in item.products:
        macs += product.macs
        weights = product.out_features * product.in_features * product.copies
        moved += weights * _FLOAT_BYTES + product.rows * (product.in_features + product.out_features) * _FLOAT_BYTES
    seconds = max(moved / host.bandwidth_bytes_per_second, macs / host.macs_per_second)
    return Cost(seconds + host.overhead_seconds, {HOST: seconds + host.overhead_seconds}, {}, None)
