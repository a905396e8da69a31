"""How the scales of a format's groups are stored: a dimension of its own, beside the kind of code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch

__all__ = ["E8M0", "E8M0_VALUES", "FLOAT16", "ROW_SCALE_STEPS", "SCALE_TYPES", "TWO_LEVEL", "ScaleType"]

LARGEST_HALF = 65504.0
_SMALLEST_HALF = 2.0**-24
_BIAS = 127
# codes times these are finite, and no half of them is subnormal, in float32
_SMALLEST_POWER, _LARGEST_POWER = 2.0**-125, 2.0**119
_LARGEST_BYTE = 255
ROW_SCALE_STEPS = 256
"""A scale of 8 bits counts these parts of its row's scale."""

E8M0_VALUES = (*(2.0 ** (byte - _BIAS) for byte in range(255)), float("nan"))
"""The value of every byte of E8M0 (OCP Microscaling Formats 1.0, section 5.4.1)."""


@dataclass(frozen=True)
class ScaleType(ABC):
    """One way to store scales.

    Attributes:
        suffix: what the names of formats with such scales end in.
        group_bytes: what a group takes.
        row_bytes: what a row takes besides.
    """

    suffix: str
    group_bytes: int
    row_bytes: int

    @property
    def operator_suffix(self) -> str:
        """What the names of operators that read such scales end in."""
        return self.suffix.capitalize()

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of what is stored."""
        return ("scales", "row_scales") if self.row_bytes else ("scales",)

    @abstractmethod
    def rounded(self, scales: torch.Tensor) -> torch.Tensor:
        """Scales that can be stored, near the given ones, never zero: float32 [N, G].

        Raises:
            OverflowError: a scale is too large; the caller names the weight.
        """

    @abstractmethod
    def stored(self, scales: torch.Tensor) -> dict[str, torch.Tensor]:
        """Rounded scales, float32 [N, G], as tensors [N, G] or [N, 1], by their names."""

    @abstractmethod
    def values(self, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The inverse of `stored`."""


class _Float16(ScaleType):
    def rounded(self, scales: torch.Tensor) -> torch.Tensor:
        return _as_halves(scales)

    def stored(self, scales: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scales": scales.half()}

    def values(self, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return stored["scales"].float()


class _E8M0(ScaleType):
    def rounded(self, scales: torch.Tensor) -> torch.Tensor:
        """The power of two at or above: one below would saturate what lies between."""
        _check_below(scales, _LARGEST_POWER)
        scales = scales.clamp(min=_SMALLEST_POWER)
        mantissa, _ = torch.frexp(scales)
        return torch.where(mantissa == 0.5, scales, scales / mantissa)

    def stored(self, scales: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scales": (scales.view(torch.int32) >> 23).to(torch.uint8)}  # the exponent field of float32

    def values(self, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
        scales = stored["scales"]
        return torch.tensor(E8M0_VALUES, device=scales.device)[scales.int()]


class _TwoLevel(ScaleType):
    """`scale = row_scale * byte / ROW_SCALE_STEPS`: the row's largest scale is 255 / 256 of its `row_scale`."""

    def rounded(self, scales: torch.Tensor) -> torch.Tensor:
        largest = scales.amax(1, keepdim=True)
        rows = self._rows(largest)
        steps = torch.round(scales * (ROW_SCALE_STEPS / rows)).clamp_(1, _LARGEST_BYTE)
        steps = torch.where(scales == largest, _LARGEST_BYTE, steps)  # so that `stored` finds the row's scale again
        return steps * (rows / ROW_SCALE_STEPS)

    def stored(self, scales: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = self._rows(scales.amax(1, keepdim=True))
        return {"scales": torch.round(scales * (ROW_SCALE_STEPS / rows)).to(torch.uint8), "row_scales": rows.half()}

    def values(self, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return stored["scales"].float() * (stored["row_scales"].float() / ROW_SCALE_STEPS)

    def _rows(self, largest: torch.Tensor) -> torch.Tensor:
        return _as_halves(largest * ROW_SCALE_STEPS / _LARGEST_BYTE)


FLOAT16 = _Float16("", 2, 0)
E8M0 = _E8M0("e8", 1, 0)
TWO_LEVEL = _TwoLevel("s8", 1, 2)
SCALE_TYPES = {scale_type.suffix: scale_type for scale_type in (FLOAT16, E8M0, TWO_LEVEL)}


def _as_halves(scales: torch.Tensor) -> torch.Tensor:
    _check_below(scales, LARGEST_HALF)
    return scales.clamp(min=_SMALLEST_HALF).half().float()


def _check_below(scales: torch.Tensor, largest: float) -> None:
    if scales.numel() and float(scales.max()) > largest:
        raise OverflowError(f"a scale is larger than {largest:g}")
