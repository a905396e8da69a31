"""What the benchmarks' models are made of: packed weights with random codes, and the operators that read them."""

from __future__ import annotations

import numpy as np
from native import aligned_zeros

from qxcompiler import profiling
from qxcompiler.formats import Format, Scheme
from qxcompiler.packing import LAYOUT
from qxcompiler.runtime_ops.operators import operator_name

__all__ = ["packed_operator", "random_tensors"]


def random_tensors(fmt: Format, N: int, K: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The tensors of a packed weight with random codes, which lie on whole cache lines, as those of a session do."""
    tensors = profiling.random_tensors(fmt, N, K, rng)
    lines = tensors["packed"]
    tensors["packed"] = aligned_zeros(lines.size).reshape(lines.shape)
    tensors["packed"][:] = lines
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
