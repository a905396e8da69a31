"""Systolic arrays by closed formulas.

Samajdar et al., "A systematic methodology for characterizing scalability of DNN accelerators using SCALE-Sim" (ISPASS
2020; first as arXiv 1811.02883): a product is cut into folds that fill the array, one after the other, and a fold of an
array of R rows and C columns takes 2 R + C + T - 2 cycles: R to load or drain what stays, T + R + C - 2 until the last
of T operands, which enter skewed, has left the far corner.
"""

from __future__ import annotations

from typing import NamedTuple

from qxcompiler.targets.hardware import Array

__all__ = ["Folds", "folds"]


class Folds(NamedTuple):
    """How an array passes through a product [M, K] x [K, N].

    Attributes:
        cycles: of all folds.
        input_reads: how often every activation is read.
        weight_reads: how often every weight is read.
        output_writes: how often every output is written; all but the last are partial sums, which are read back.
    """

    cycles: int
    input_reads: int
    weight_reads: int
    output_writes: int


def folds(array: Array, M: int, N: int, K: int) -> Folds:
    """Cycles and reads of a product of M rows, N output and K input features."""
    R, C = array.rows, array.columns
    if array.dataflow == "output-stationary":
        down, across, T = _ceil(M, R), _ceil(N, C), K
        return Folds(down * across * (2 * R + C + T - 2), across, down, 1)
    down = _ceil(K, R)
    if array.dataflow == "weight-stationary":
        across, T = _ceil(N, C), M
        return Folds(down * across * (2 * R + C + T - 2), across, 1, down)
    across, T = _ceil(M, C), N
    return Folds(down * across * (2 * R + C + T - 2), 1, across, down)


def _ceil(n: int, step: int) -> int:
    return -(-n // step)
