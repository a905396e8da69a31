"""Every quantizer by its name: a new one is one module with one function, and one entry in `QUANTIZERS`.

A package adds its own by an entry point of the group `qxcompiler.quantizers`.
"""

from __future__ import annotations

from typing import Protocol

import torch

from qxcompiler.calibration.statistics import InputStatistics
from qxcompiler.errors import UsageError
from qxcompiler.extensions import extensions
from qxcompiler.formats import Format, QuantizedWeight
from qxcompiler.quantizers.gptq import gptq
from qxcompiler.quantizers.rtn import rtn

__all__ = ["QUANTIZERS", "Quantizer", "find_quantizer"]


class Quantizer(Protocol):
    """A function from (weight [N, K], format, statistics of the input or None) to codes."""

    def __call__(self, weight: torch.Tensor, fmt: Format, statistics: InputStatistics | None, /) -> QuantizedWeight: ...


QUANTIZERS: dict[str, Quantizer] = {"rtn": rtn, "gptq": gptq}


def find_quantizer(name: str) -> Quantizer:
    """The quantizer of that name.

    Raises:
        UsageError: there is none.
    """
    if name in QUANTIZERS:
        return QUANTIZERS[name]
    every: dict[str, Quantizer] = extensions("quantizers") | QUANTIZERS
    if name not in every:
        raise UsageError(repr(name), "not a quantizer", f"choose one of {', '.join(every)}")
    return every[name]
