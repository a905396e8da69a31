"""What one product costs on a target: time, the bytes that every memory moves, energy, and what bounds it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil

from qxcompiler.cost.arrays import Folds, folds
from qxcompiler.cost.operands import VECTOR_UNIT, Way, ways, ways_between_activations
from qxcompiler.cost.tiling import ACCUMULATOR_BYTES, Operands, best_tiling
from qxcompiler.errors import TargetError, UnsupportedByTargetError
from qxcompiler.formats import STATIC, Scheme, block_size
from qxcompiler.packing.tile16 import BLOCK_COLUMNS, TILE_ROWS, packed_bytes
from qxcompiler.targets import Target
from qxcompiler.targets.hardware import ACTIVATION_OPERANDS, MeasuredKernel

__all__ = [
    "HOST",
    "OVERHEAD",
    "Cost",
    "Traffic",
    "cache_bytes",
    "cost_of_attention_product",
    "cost_of_product",
    "elementwise_cost",
    "total",
    "value_bytes",
]

OVERHEAD, HOST = "overhead", "host"
_FLOAT_BYTES = 4  # a weight left in float


@dataclass
class Traffic:
    """Bytes that one memory moves."""

    read: float = 0.0
    written: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.read + other.read, self.written + other.written)


@dataclass(frozen=True)
class Cost:
    """What something costs.

    Attributes:
        seconds: from begin to end.
        busy: seconds that each resource works: a compute unit, `vector unit`, a memory, `host`, or `overhead`.
        traffic: bytes that each memory moves.
        joules: None where the descriptor lacks an energy.
    """

    seconds: float
    busy: Mapping[str, float]
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    joules: float | None = None

    @property
    def binding(self) -> str:
        """What works longest, so that the rest waits for it."""
        return max(self.busy, key=lambda resource: self.busy[resource])

    def times(self, count: int) -> Cost:
        """The same, so many times, one after the other."""
        return Cost(
            self.seconds * count,
            {resource: time * count for resource, time in self.busy.items()},
            {level: Traffic(moved.read * count, moved.written * count) for level, moved in self.traffic.items()},
            None if self.joules is None else self.joules * count,
        )


def total(parts: Sequence[Cost]) -> Cost:
    """What parts cost, one after the other."""
    busy: dict[str, float] = {}
    traffic: dict[str, Traffic] = {}
    for part in parts:
        for resource, time in part.busy.items():
            busy[resource] = busy.get(resource, 0.0) + time
        for level, moved in part.traffic.items():
            traffic[level] = traffic.get(level, Traffic()) + moved
    energies = [part.joules for part in parts if part.joules is not None]
    joules = sum(energies) if len(energies) == len(parts) else None
    return Cost(sum(part.seconds for part in parts), busy, traffic, joules)


def cost_of_product(target: Target, rows: int, out_features: int, in_features: int, scheme: Scheme | None) -> Cost:
    """What `Y = X Wᵀ` costs, by the fastest way that the target has, without starting the operator.

    Args:
        target: the hardware.
        rows: M, of X and Y.
        out_features: N.
        in_features: K.
        scheme: of the weights, which lie packed as `qxcompiler.packing` packs them; None for float32.

    Raises:
        TargetError: the descriptor lacks a section, or a memory cannot hold the smallest tile.
        UnsupportedByTargetError: no unit can multiply so.
    """
    target.check_cost()
    N, K = out_features, in_features
    size = packed_bytes(scheme.format, N, K) if scheme else N * K * _FLOAT_BYTES
    cost = _measured(target, rows, N, K, scheme, size)
    if cost is None:
        assert target.memory_mode is not None
        rounded = 0 if scheme is None or scheme.activation in ("a32", STATIC) else rows * K
        problem = _Problem(rows, N, K, size, rounded, target.memory_mode.weights)
        cost = _fastest(target, ways(target, scheme), problem, f"weights as {scheme or 'float'}")
    if scheme is None or not scheme.format.rotated:
        return cost
    return total([_rotation(target, rows, K), cost])


def _rotation(target: Target, rows: int, in_features: int) -> Cost:
    """What it costs to multiply X with Hadamard matrices: additions by halves, and the signs."""
    mode, block = target.memory_mode, block_size(in_features)
    assert mode is not None
    values = rows * in_features
    size = values * value_bytes(target)
    home = mode.cache if 2 * size <= cache_bytes(target) // 2 else mode.activations
    return elementwise_cost(target, {home: size}, {home: size}, values * block.bit_length())


def cost_of_attention_product(
    target: Target, rows: int, out_features: int, in_features: int, *, cached: bool, kept_bytes: float | None = None
) -> Cost:
    """What a product of two activations costs, [M, K] x [K, N].

    Args:
        target: the hardware.
        rows: M.
        out_features: N.
        in_features: K.
        cached: whether the second comes from where keys and values are kept.
        kept_bytes: what a number of it takes there, where it is kept in a format of fewer bits.
    """
    target.check_cost()
    assert target.memory_mode is not None
    size = ceil(out_features * in_features * (kept_bytes or value_bytes(target)))
    home = target.memory_mode.kv_cache if cached else None
    problem = _Problem(rows, out_features, in_features, size, 0, home)
    return _fastest(target, ways_between_activations(target), problem, "activations with activations")


def elementwise_cost(target: Target, read: Mapping[str, float], written: Mapping[str, float], values: float) -> Cost:
    """What an operator that is no product costs.

    Args:
        target: the hardware.
        read: bytes, by the memory that they come from.
        written: bytes, by the memory that they go to.
        values: results that the vector unit computes.
    """
    clock, vector = target.core_clock_hz, target.vector_unit
    assert clock is not None and vector is not None
    traffic: dict[str, Traffic] = {}
    for home, size in read.items():
        for level in target.path(home):
            traffic.setdefault(level, Traffic()).read += size
    for home, size in written.items():
        for level in target.path(home):
            traffic.setdefault(level, Traffic()).written += size
    busy = {VECTOR_UNIT: values / vector.values_per_cycle / clock}
    return _with_memories(target, busy, traffic, _energy([(values, vector.value_energy_pj)]))


@dataclass(frozen=True)
class _Problem:
    """A product [M, K] x [K, N].

    Attributes:
        M, N, K: its sizes.
        size: bytes of the second operand.
        rounded: activations that are rounded first.
        home: where the second operand lies; None for where activations do.
    """

    M: int
    N: int
    K: int
    size: float
    rounded: int
    home: str | None


def _fastest(target: Target, found: Iterable[Way], problem: _Problem, what: str) -> Cost:
    costs = [_by_way(target, way, problem) for way in found]
    if not costs:
        remedy = "choose a scheme that its compute units and its vector unit can"
        raise UnsupportedByTargetError(f"target {target.name}", f"has no unit that multiplies {what}", remedy)
    return min(costs, key=lambda cost: cost.seconds)


def _by_way(target: Target, way: Way, problem: _Problem) -> Cost:
    clock, vector = target.core_clock_hz, target.vector_unit
    assert clock is not None and vector is not None
    M, N, K = problem.M, problem.N, problem.K
    share = -(-N // way.copies)
    if way.array is None:
        passed = Folds(0, 1, 1, 1)
        cycles = M * share * K / way.macs_per_cycle
    else:
        passed = folds(way.array, M, share, K)
        cycles = passed.cycles * (way.array.rows * way.array.columns / way.macs_per_cycle)
    decoded = N * K * passed.weight_reads if way.decode_rate else 0
    around = problem.rounded + M * N  # Y is scaled
    busy = {way.unit: cycles / clock}
    vector_cycles = around / vector.values_per_cycle + (decoded / way.decode_rate if way.decode_rate else 0)
    if way.unit == VECTOR_UNIT or not vector.overlaps_compute:
        busy[way.unit] += vector_cycles / clock
    else:
        busy[VECTOR_UNIT] = vector_cycles / clock
    traffic, transfers = _traffic(target, problem, passed)
    energy = _energy([(M * N * K, way.mac_energy_pj), (decoded + around, vector.value_energy_pj)])
    return _with_memories(target, busy, traffic, energy, transfers)


def _traffic(target: Target, problem: _Problem, passed: Folds) -> tuple[dict[str, Traffic], int]:
    """What every memory moves under the best tiling of the cache, and in how many tiles."""
    mode, memory, dma = target.memory_mode, target.memory, target.dma
    assert mode is not None and memory is not None and dma is not None
    M, N, K, value = problem.M, problem.N, problem.K, value_bytes(target)
    inputs, outputs = M * K * value, M * N * value
    capacity, cache = cache_bytes(target), mode.cache
    stays = inputs + outputs <= capacity // 2  # beside the tiles, which have the other half
    values_home = cache if stays else mode.activations
    weights_home = problem.home or values_home
    room = capacity // 2 if dma.overlaps_compute else capacity  # the next tiles come in while these are computed on
    far = [level for level in (weights_home, values_home) if level != cache]
    burst = max([dma.alignment_bytes, *(max(memory[x].burst_length_bytes, memory[x].width_bits // 8) for x in far)])
    weights = read = written = 0.0  # that pass the cache's border
    transfers = 0
    if weights_home == cache:
        if values_home != cache:
            read, written, transfers = inputs, outputs, -(-(inputs + outputs) // room)
    elif stays:
        weights = float(-(-problem.size // burst) * burst)
        transfers = int(-(-weights // room))
    else:
        tiling = best_tiling(Operands(M, N, K, int(problem.size), value, TILE_ROWS, BLOCK_COLUMNS, burst), room)
        if tiling is None:
            wrong = f"cannot hold the smallest tile of a product [{M}, {K}] x [{K}, {N}] in {cache}"
            raise TargetError(f"target {target.name}", wrong, "make it larger")
        weights, transfers = tiling.weight_bytes, tiling.transfers
        read, written = tiling.input_bytes + tiling.partial_bytes, tiling.output_bytes
    traffic = {cache: Traffic(written, weights + read)}
    for home, came, went in ((weights_home, weights, 0.0), (values_home, read, written)):
        for level in target.path(home)[:-1]:
            traffic[level] = traffic.get(level, Traffic()) + Traffic(came, went)
    partial = M * N * ACCUMULATOR_BYTES * (passed.output_writes - 1)
    taken = problem.size * passed.weight_reads + inputs * passed.input_reads + partial
    traffic[cache] += Traffic(taken, partial + outputs)
    return traffic, transfers


def cache_bytes(target: Target) -> int:
    """How much of the cache may be used."""
    assert target.memory_mode is not None and target.memory is not None
    return target.memory_mode.cache_size_bytes or target.memory[target.memory_mode.cache].size_bytes


def value_bytes(target: Target) -> int:
    """Bytes of a value between operators."""
    assert target.vector_unit is not None
    return ACTIVATION_OPERANDS[target.vector_unit.operand] // 8


def _with_memories(
    target: Target, busy: dict[str, float], traffic: dict[str, Traffic], energy: float | None, transfers: int = 1
) -> Cost:
    """Add what the memories take, and what does not overlap: with the latency of the first tile, or of all."""
    memory, dma, mode, clock = target.memory, target.dma, target.memory_mode, target.core_clock_hz
    assert memory is not None and dma is not None and mode is not None and clock is not None
    latency = 0.0
    for name, moved in traffic.items():
        level = memory[name]
        busy[name] = (moved.read + moved.written) / level.bandwidth_bytes_per_second
        if name != mode.cache:  # until the first bytes are there, and the last are away
            latency += level.read_latency_cycles * (moved.read > 0) + level.write_latency_cycles * (moved.written > 0)
    if dma.overlaps_compute:
        seconds = max(busy.values())
    else:
        latency *= max(1, -(-transfers // dma.channels))
        far = sum(busy[name] for name in traffic if name != mode.cache)
        seconds = far + max(time for name, time in busy.items() if name not in traffic or name == mode.cache)
    energies = [(moved.read, memory[name].read_energy_pj_per_byte) for name, moved in traffic.items()]
    energies += [(moved.written, memory[name].write_energy_pj_per_byte) for name, moved in traffic.items()]
    moving = _energy(energies)
    joules = None if energy is None or moving is None else energy + moving
    return Cost(seconds + latency / clock, busy, traffic, joules)


def _energy(parts: Iterable[tuple[float, float | None]]) -> float | None:
    """Joules of so many things of so many picojoules each; None where one is not known."""
    total = 0.0
    for count, picojoules in parts:
        if count and picojoules is None:
            return None
        total += count * (picojoules or 0.0) * 1e-12
    return total


def _measured(target: Target, M: int, N: int, K: int, scheme: Scheme | None, size: float) -> Cost | None:
    """By what was measured, if that scheme was."""
    measured, mode, memory = target.measured, target.memory_mode, target.memory
    if measured is None or mode is None or memory is None:
        return None
    kernel = _nearest_kernel(target, scheme)
    if kernel is None:
        return None
    bandwidth = measured.read_bandwidth_bytes_per_second[measured.threads]
    busy = {"kernel": N * K * _seconds_a_weight(kernel, M), mode.weights: size / bandwidth}
    values = (M * K + M * N) * value_bytes(target)
    traffic = {mode.weights: Traffic(read=size)}
    if mode.weights != mode.cache:
        traffic[mode.cache] = Traffic(read=size + values, written=size)
    energies = [(moved.read, memory[name].read_energy_pj_per_byte) for name, moved in traffic.items()]
    energies += [(moved.written, memory[name].write_energy_pj_per_byte) for name, moved in traffic.items()]
    way = min(ways(target, scheme), key=lambda way: -way.macs_per_cycle * way.copies, default=None)
    energies.append((M * N * K, way.mac_energy_pj if way else None))
    return Cost(max(busy.values()), busy, traffic, _energy(energies))


def _nearest_kernel(target: Target, scheme: Scheme | None) -> MeasuredKernel | None:
    """What was measured for a scheme, or for one of the same codes and the nearest group size."""
    measured = target.measured
    assert measured is not None
    kernels = [each for each in measured.kernels if each.threads == measured.threads]
    if scheme is None:
        return next((each for each in kernels if each.scheme == "float"), None)

    def distance(kernel: MeasuredKernel) -> float:
        assert isinstance(kernel.scheme, Scheme)
        ours, theirs = ((fmt.group_size or 1 << 20) for fmt in (scheme.format, kernel.scheme.format))
        return max(ours, theirs) / min(ours, theirs) + (kernel.scheme.format.scale_type != scheme.format.scale_type)

    alike = [
        each
        for each in kernels
        if isinstance(each.scheme, Scheme)
        and each.scheme.activation == scheme.activation
        and _codes(each.scheme) == _codes(scheme)
    ]
    return min(alike, key=distance, default=None)


def _codes(scheme: Scheme) -> tuple[str, int, bool]:
    """What decides a kernel's inner loop: the kind of codes, their bits, and whether each row has a table."""
    return scheme.format.code_type, scheme.format.bits, scheme.format.codebook_rows(2) > 1


def _seconds_a_weight(kernel: MeasuredKernel, rows: int) -> float:
    """Linear in rows between what was measured; beyond the last, in proportion to rows; before the first, as it."""
    known = sorted((count, 1 / rate) for count, rate in kernel.weights_per_second.items())
    if rows <= known[0][0]:
        return known[0][1]
    if rows >= known[-1][0]:
        return known[-1][1] * rows / known[-1][0]
    index = bisect_left(known, (rows, 0.0))
    (low, fast), (high, slow) = list(pairwise(known))[index - 1]
    return fast + (slow - fast) * (rows - low) / (high - low)
