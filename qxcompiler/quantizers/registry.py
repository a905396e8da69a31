"""Every quantizer by its name: a new one is one module with one function, and one entry in `QUANTIZERS`.

A package adds its own, a `Quantizer`, by an entry point of the group `qxcompiler.quantizers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from qxcompiler.calibration.statistics import InputStatistics
from qxcompiler.extensions import named
from qxcompiler.formats import Format, QuantizedWeight
from qxcompiler.quantizers.gptq import gptq
from qxcompiler.quantizers.hqq import hqq
from qxcompiler.quantizers.rtn import rtn

__all__ = ["QUANTIZERS", "Need", "Quantizer", "find_quantizer"]


Need: TypeAlias = Literal["statistics", "token weights", "attention weights", "original inputs"]


@dataclass(frozen=True)
class Quantizer:
    """An algorithm that chooses codes.

    Attributes:
        quantize: a function from (weight [N, K], format, statistics of the input or None) to codes. Statistics are None
            in a compile without samples.
        needs: what it is not worth running without: a compile without samples is refused if it needs statistics; these
            have the drift from the original model's inputs where it needs them, too.
    """

    quantize: Callable[[torch.Tensor, Format, InputStatistics | None], QuantizedWeight]
    needs: frozenset[Need] = frozenset({"statistics"})


QUANTIZERS: dict[str, Quantizer] = {
    "rtn": Quantizer(rtn, needs=frozenset()),
    "gptq": Quantizer(gptq),
    "gptaq": Quantizer(gptq, needs=frozenset({"statistics", "original inputs"})),  # GPTAQ (Li et al. 2025)
    "guided": Quantizer(gptq, needs=frozenset({"statistics", "token weights"})),  # GuidedQuant (Kim et al. 2025)
    "hqq": Quantizer(hqq, needs=frozenset()),
}


def find_quantizer(name: str) -> Quantizer:
    """The quantizer of that name.

    Raises:
        UsageError: there is none.
    """
    return named("quantizers", name, QUANTIZERS)
