"""What every weight format has in common: its name, its groups, its grid of representable values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

__all__ = ["GROUP_SIZES", "Columns", "Format", "Grid", "QuantizedWeight", "to_scale", "weighting"]

Columns = int | torch.Tensor | slice

GROUP_SIZES = (16, 32, 64, 128, 256)
_LARGEST_SCALE = 65504.0  # of float16
_SMALLEST_SCALE = 2.0**-24


def weighting(importance: torch.Tensor) -> torch.Tensor:
    """The importance of every input, none of it zero: where nothing weighs anything, all weigh alike."""
    return importance.clamp(min=1e-8 * float(importance.max()) + 1e-30)


def to_scale(scale: torch.Tensor) -> torch.Tensor:
    """Round float32 scales to what float16 stores, never to zero.

    Raises:
        OverflowError: a scale is beyond float16; the caller names the weight.
    """
    if scale.numel() and float(scale.max()) > _LARGEST_SCALE:
        raise OverflowError("a scale does not fit float16")
    return scale.clamp(min=_SMALLEST_SCALE).half().float()


@dataclass(frozen=True)
class Format(ABC):
    """How the numbers of a weight matrix [N, K] are stored.

    Attributes:
        bits: bits of a code.
        group_size: how many consecutive inputs (along K) share a scale; None for a whole row.
    """

    bits: int
    group_size: int | None

    @property
    @abstractmethod
    def name(self) -> str:
        """The spec that `parse_format` reads, such as `int3g128a`."""

    @property
    @abstractmethod
    def operator_suffix(self) -> str:
        """What the operator that reads this format is called after `MatMul` or `Gather`: `UInt3`."""

    @property
    @abstractmethod
    def has_zero_points(self) -> bool:
        """Whether each group stores a zero point."""

    @property
    def scale_dtype(self) -> torch.dtype:
        """How scales are stored."""
        return torch.float16

    @abstractmethod
    def codebook_rows(self, out_features: int) -> int:
        """How many codebooks a weight of N rows stores: N, 1, or 0 for a format without."""

    @abstractmethod
    def fit(self, weight: torch.Tensor, importance: torch.Tensor) -> Grid:
        """Choose the grid that loses least.

        Args:
            weight: float32 [N, K].
            importance: float32 [K], at least 0: how much a squared error in each input counts,
                usually the diagonal of XᵀX.

        Returns:
            the grid that minimises the weighted squared error of rounding to nearest, as well as
            this format's search finds it.

        Raises:
            OverflowError: the weight is too large for float16 scales.
        """

    @abstractmethod
    def grid(
        self, in_features: int, scales: torch.Tensor, zero_points: torch.Tensor | None, codebook: torch.Tensor | None
    ) -> Grid:
        """The grid that was stored: the inverse of `stored_scales`, `zero_points` and `codebook`.

        Args:
            in_features: K.
            scales: [N, G], of the format's `scale_dtype`.
            zero_points: uint8 [N, G], or None where the format has none.
            codebook: int8 [N or 1, 2**bits], or None where the format has none.
        """

    def group_length(self, in_features: int) -> int:
        """How many inputs a group spans in a matrix of K inputs."""
        return self.group_size or in_features

    def groups(self, in_features: int) -> int:
        """How many groups a row of K weights has; the last may be shorter."""
        return -(-in_features // self.group_length(in_features))

    def grouped(self, per_input: torch.Tensor) -> torch.Tensor:
        """[..., K] as [..., G, group length], the last group filled up with zeros."""
        K = per_input.shape[-1]
        length = self.group_length(K)
        filled = torch.nn.functional.pad(per_input, (0, self.groups(K) * length - K))
        return filled.view(*filled.shape[:-1], -1, length)

    def group_of(self, in_features: int, device: torch.device | None = None) -> torch.Tensor:
        """The group of every input: int64 [K]."""
        return torch.arange(in_features, device=device) // self.group_length(in_features)


@dataclass(frozen=True)
class Grid(ABC):
    """The values that a format can represent at every place of one matrix [N, K].

    Attributes:
        format: the format.
        in_features: K.
        scales: float32 [N, G], each exactly as `stored_scales` has it.
    """

    format: Format
    in_features: int
    scales: torch.Tensor

    @abstractmethod
    def encode(self, values: torch.Tensor, columns: Columns) -> torch.Tensor:
        """The nearest codes: uint8 [N, C] for float32 `values` [N, C], the given columns of the matrix."""

    @abstractmethod
    def decode(self, codes: torch.Tensor, columns: Columns) -> torch.Tensor:
        """The values of codes: float32 [N, C] for uint8 `codes` [N, C], the given columns of the matrix."""

    @property
    def stored_scales(self) -> torch.Tensor:
        """[N, G], of the format's `scale_dtype`."""
        return self.scales.to(self.format.scale_dtype)

    @property
    def zero_points(self) -> torch.Tensor | None:
        """uint8 [N, G], or None where the format has none."""
        return None

    @property
    def codebook(self) -> torch.Tensor | None:
        """int8 [N or 1, 2**bits], ascending along a row, or None where the format has none."""
        return None

    def column_scales(self, columns: Columns) -> torch.Tensor:
        """float32 [N, C]: the scale of every weight in the given columns."""
        return self.scales[:, self._groups(columns)]

    def _groups(self, columns: Columns) -> torch.Tensor | slice:
        """What selects the groups of `columns` from [N, G]; a view where one column is asked for."""
        if isinstance(columns, int):
            group = columns // self.format.group_length(self.in_features)
            return slice(group, group + 1)
        return self.format.group_of(self.in_features, self.scales.device)[columns]


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight matrix as codes on a grid.

    Attributes:
        grid: the values that codes stand for.
        codes: uint8 [N, K].
    """

    grid: Grid
    codes: torch.Tensor

    @property
    def format(self) -> Format:
        """The format of the grid."""
        return self.grid.format

    def decode(self) -> torch.Tensor:
        """The matrix that the codes stand for: float32 [N, K]."""
        return self.grid.decode(self.codes, slice(None))
