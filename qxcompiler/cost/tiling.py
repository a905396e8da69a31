"""The tiles in which a product passes through a memory, chosen so that the memory below moves the fewest bytes.

Three loops over tiles of M, N and K, in any order, and one tile of each operand in the memory. A tile stays while the
loops that its operand does not depend on turn inside of those that it does. Partial sums that leave come back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np

__all__ = ["ACCUMULATOR_BYTES", "Operands", "Tiling", "best_tiling"]

ACCUMULATOR_BYTES = 4
_DEPENDS = {"inputs": "mk", "weights": "nk", "outputs": "mn"}


@dataclass(frozen=True)
class Operands:
    """A product [M, K] x [K, N] as it lies in memory.

    Attributes:
        M, N, K: its sizes.
        weight_bytes: of all weights, packed and padded.
        value_bytes: of an activation, and of an output.
        unit_n, unit_k: tiles span whole multiples of so many output and input features, as weights are packed.
        burst_bytes: a run of consecutive bytes moves as whole multiples of this.
    """

    M: int
    N: int
    K: int
    weight_bytes: int
    value_bytes: int
    unit_n: int
    unit_k: int
    burst_bytes: int


@dataclass(frozen=True)
class Tiling:
    """Sizes of a tile, and what passes to and from the memory below.

    Attributes:
        m, n, k: rows, output features and input features of a tile.
        order: the loops over tiles, the outermost first.
        input_bytes, weight_bytes: read.
        partial_bytes: partial sums, read again.
        output_bytes: written, partial sums too.
        transfers: how many tiles move.
    """

    m: int
    n: int
    k: int
    order: str
    input_bytes: float
    weight_bytes: float
    partial_bytes: float
    output_bytes: float
    transfers: int

    @property
    def bytes(self) -> float:
        """All that passes."""
        return self.input_bytes + self.weight_bytes + self.partial_bytes + self.output_bytes


@lru_cache(maxsize=1 << 16)
def best_tiling(operands: Operands, capacity: int) -> Tiling | None:
    """The tiling of fewest bytes, then of fewest transfers, whose tiles `capacity` bytes hold; None where none fits."""
    o = operands
    units_n, units_k = -(-o.N // o.unit_n), -(-o.K // o.unit_k)
    weight = o.weight_bytes / (units_n * o.unit_n * units_k * o.unit_k)
    # Of tile sizes that make as many tiles, the smallest leaves the most room.
    n, k = (grid.ravel() for grid in np.meshgrid(_sizes(units_n) * o.unit_n, _sizes(units_k) * o.unit_k))
    room = capacity - n * k * weight
    m = np.minimum(room // (k * o.value_bytes + n * ACCUMULATOR_BYTES), o.M)
    fits = m >= 1
    if not fits.any():
        return None
    n, k, m = n[fits], k[fits], m[fits]
    trips = {"m": np.ceil(o.M / m), "n": np.ceil(o.N / n), "k": np.ceil(o.K / k)}
    once = _moved_once(o, trips, n, k)
    best: tuple[tuple[float, float], int, str, dict[str, np.ndarray]] | None = None
    for order in permutations("mnk"):
        again = {name: _reloads(order, depends, trips) for name, depends in _DEPENDS.items()}
        moved = {
            "inputs": once["inputs"] * again["inputs"],
            "weights": once["weights"] * again["weights"],
            "partial": once["partial"] * (again["outputs"] - 1),
            "outputs": once["outputs"] + once["partial"] * (again["outputs"] - 1),
        }
        total = np.sum(list(moved.values()), axis=0)
        tiles = sum(
            np.prod([trips[loop] for loop in depends], axis=0) * again[name] for name, depends in _DEPENDS.items()
        )
        index = int(np.lexsort((tiles, total))[0])
        key = (float(total[index]), float(tiles[index]))
        if best is None or key < best[0]:
            best = (key, index, "".join(order), moved)
    assert best is not None
    (_, transfers), index, chosen, moved = best
    return Tiling(
        m=int(m[index]),
        n=int(min(n[index], o.N)),
        k=int(min(k[index], o.K)),
        order=chosen,
        input_bytes=float(moved["inputs"][index]),
        weight_bytes=float(moved["weights"][index]),
        partial_bytes=float(moved["partial"][index]),
        output_bytes=float(moved["outputs"][index]),
        transfers=int(transfers),
    )


def _sizes(units: int) -> np.ndarray:
    """The smallest size of a tile for every number of tiles that there can be."""
    return np.array(sorted({-(-units // count) for count in _counts(units)}), dtype=float)


def _counts(units: int) -> list[int]:
    root = int(units**0.5) + 1
    return [*range(1, root + 1), *(-(-units // size) for size in range(1, root + 1))]


def _reloads(order: tuple[str, ...], depends: str, trips: dict[str, np.ndarray]) -> np.ndarray:
    """How often an operand passes: the turns of the loop it does not depend on, if one that it does turns inside."""
    (other,) = set("mnk") - set(depends)
    inside = order[order.index(other) + 1 :]
    turns = np.zeros(trips[other].shape, dtype=bool)
    for loop in inside:
        turns |= trips[loop] > 1
    return np.where(turns, trips[other], 1.0)


def _moved_once(o: Operands, trips: dict[str, np.ndarray], n: np.ndarray, k: np.ndarray) -> dict[str, np.ndarray]:
    """Bytes of each operand if every tile moved once.

    Tiles of whole rows follow each other, so the matrix is one run. Otherwise each row of a tile is a run.
    """

    def pieces(row: float, size: int, tile: np.ndarray, count: np.ndarray) -> np.ndarray:
        """A row of `size` units and `row` bytes, in `count` runs, of which the last may be shorter."""
        last = size - (count - 1) * tile
        each = row / size
        return np.asarray((count - 1) * _aligned(tile * each, o.burst_bytes) + _aligned(last * each, o.burst_bytes))

    def matrix(columns: int, tile: np.ndarray, count: np.ndarray) -> np.ndarray:
        row = columns * o.value_bytes
        return np.where(count == 1, _aligned(o.M * row, o.burst_bytes), o.M * pieces(row, columns, tile, count))

    units_n, units_k = -(-o.N // o.unit_n), -(-o.K // o.unit_k)
    in_pieces = units_n * pieces(o.weight_bytes / units_n, units_k, k // o.unit_k, trips["k"])
    outputs = matrix(o.N, n, trips["n"])
    return {
        "inputs": matrix(o.K, k, trips["k"]),
        "outputs": outputs,
        "weights": np.where(trips["k"] == 1, _aligned(o.weight_bytes, o.burst_bytes), in_pieces),
        "partial": outputs * (ACCUMULATOR_BYTES / o.value_bytes),
    }


def _aligned(size: float | np.ndarray, burst: int) -> np.ndarray:
    return np.asarray(size if burst == 1 else np.ceil(size / burst - 1e-9) * burst)
