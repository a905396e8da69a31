"""What the benchmarks' models are made of: packed weights with random codes, and the operators that read them."""

from __future__ import annotations

import math

import numpy as np
from native import aligned_zeros

from qxcompiler.formats import E8M0, FLOAT16, Format, Scheme
from qxcompiler.packing import LAYOUT
from qxcompiler.packing.tile16 import BLOCK_COLUMNS, LINE_BYTES, TILE_ROWS
from qxcompiler.runtime_ops.operators import operator_name

__all__ = ["packed_operator", "random_tensors"]


def random_tensors(fmt: Format, N: int, K: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The tensors of a packed weight with random codes, which lie on whole cache lines, as those of a session do."""
    tiles, per_group = -(-N // TILE_ROWS), (-(-N // TILE_ROWS), fmt.groups(K), TILE_ROWS)
    lines = (tiles, -(-K // BLOCK_COLUMNS), fmt.bits, LINE_BYTES)
    packed = aligned_zeros(math.prod(lines)).reshape(lines)
    packed[:] = rng.integers(0, 256, lines, dtype=np.uint8)
    tensors = {"packed": packed}
    if fmt.scale_type is FLOAT16:
        tensors["scales"] = (rng.standard_normal(per_group) / K).astype(np.float16)
    elif fmt.scale_type is E8M0:
        tensors["scales"] = rng.integers(110, 118, per_group, dtype=np.uint8)
    else:
        tensors["scales"] = rng.integers(1, 256, per_group, dtype=np.uint8)
        tensors["row_scales"] = (rng.standard_normal((tiles, 1, TILE_ROWS)) / K).astype(np.float16)
    if fmt.has_zero_points:
        tensors["zero_points"] = rng.integers(0, 2**fmt.bits, per_group, dtype=np.uint8)
    if rows := fmt.codebook_rows(N):
        shape = (1, 1) if rows == 1 else (tiles, TILE_ROWS)
        tensors["codebook"] = rng.integers(-127, 128, (*shape, 2**fmt.bits), dtype=np.int8)
    return tensors


def packed_operator(scheme: Scheme, N: int, K: int) -> tuple[str, dict[str, int | str]]:
    """Name and attributes of the operator for a weight [N, K]: a product, or a look-up where there is no activation."""
    attributes: dict[str, int | str] = {
        "K": K,
        "N": N,
        "group_size": scheme.format.group_length(K),
        "layout": LAYOUT,
    }
    if scheme.activation is None:
        return operator_name(scheme.format, "Gather"), attributes
    return operator_name(scheme.format, "MatMul"), {**attributes, "activation": scheme.activation}
