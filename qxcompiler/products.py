"""Products of float32 matrices at the processor's full speed."""

from __future__ import annotations

__all__ = ["fast_products"]

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SIDE = 512
# Of sums of so many products: float32 errs by 1e-7 of their magnitudes, bfloat16 by 1e-4.
_LARGEST_ERROR = 1e-5


@contextmanager
def fast_products() -> Iterator[None]:
    """While it lasts, let torch multiply float32 matrices on the CPU by oneDNN where that is as exact as MKL.

    On AMD's processors MKL uses half of AVX-512's width, and oneDNN all of it (docs/results.md, "Tuning"). torch takes
    oneDNN where less than float32 will do; of processors with AMX that is then what it gives, so what it gives is
    looked at first.
    """
    settings = getattr(torch.backends.mkldnn, "matmul", None)  # none before torch 2.9
    if settings is None or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        yield
        return
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        if not _exact():
            settings.fp32_precision = before
        yield
    finally:
        settings.fp32_precision = before


def _exact() -> bool:
    """Whether a product is within what float32 rounds."""
    X = torch.arange(_SIDE * _SIDE, dtype=torch.float64).sin().reshape(_SIDE, _SIDE).float()
    error = (X @ X - (X.double() @ X.double())).abs().max()
    return float(error) < _LARGEST_ERROR * float(X.square().sum(1).max())
