"""What every weight format has in common: its name, its groups, its grid of representable values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from qxcompiler.formats.rotation import rotate_back
from qxcompiler.formats.scales import FLOAT16, ScaleType

__all__ = ["GROUP_SIZES", "Columns", "Format", "Grid", "QuantizedWeight", "operator_suffix", "weighting"]

Columns = int | torch.Tensor | slice

GROUP_SIZES = (16, 32, 64, 128, 256)


def weighting(importance: torch.Tensor) -> torch.Tensor:
    """The importance of every input, none of it zero: where nothing weighs anything, all weigh alike."""
    return importance.clamp(min=1e-8 * float(importance.max()) + 1e-30)


def operator_suffix(code_type: str, bits: int, scale_type: ScaleType) -> str:
    """What names of operators say of a weight: `UInt3S8`; the name of a float says its bits, `E4M3E8`."""
    return f"{code_type}{'' if code_type[-1].isdigit() else bits}{scale_type.operator_suffix}"


@dataclass(frozen=True)
class Format(ABC):
    """How the numbers of a weight matrix [N, K] are stored.

    Attributes:
        bits: bits of a code.
        group_size: how many consecutive inputs (along K) share a scale; None for a whole row.
        scale_type: how scales are stored.
        rotated: whether the codes stand for the matrix with its inputs rotated (`rotation.py`); activations have to be
            rotated, too.
    """

    bits: int
    group_size: int | None
    scale_type: ScaleType = FLOAT16
    rotated: bool = False

    @property
    @abstractmethod
    def name(self) -> str:
        """The spec that `parse_format` reads, such as `int3g128a`."""

    @property
    def suffix(self) -> str:
        """The end of a name: how scales are stored, and `h` for rotated inputs."""
        return f"{self.scale_type.suffix}{'h' if self.rotated else ''}"

    @property
    @abstractmethod
    def code_type(self) -> str:
        """What a code stands for: `Int`, `UInt` (with a zero point a group), `Lut` (a codebook's entry), `Fp` (E2M1) or
        another float, such as `E4M3`.
        """

    @property
    def operator_suffix(self) -> str:
        """What the operators that read this format are called after `MatMul` or `Gather`: `UInt3`."""
        return operator_suffix(self.code_type, self.bits, self.scale_type)

    @property
    def has_zero_points(self) -> bool:
        """Whether each group stores a zero point."""
        return self.code_type == "UInt"

    @property
    def learnable(self) -> frozenset[str]:
        """What of `Grid.stored` may be learned beside frozen codes: `scales`, `codebook`, or nothing.

        A format whose scales or table are not free must say so.
        """
        return frozenset()

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
            OverflowError: the weight is too large for the scales.
        """

    @abstractmethod
    def grid(self, in_features: int, stored: Mapping[str, torch.Tensor]) -> Grid:
        """The grid that was stored.

        Args:
            in_features: K.
            stored: what `Grid.stored` gave, by name.
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
        scales: float32 [N, G], as the format's `scale_type` rounds them.
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
    def stored(self) -> dict[str, torch.Tensor]:
        """What decodes the codes, by name.

        `scales` [N, G] and `row_scales` [N, 1] as the format's `scale_type` stores them; `zero_points` uint8 [N, G] for
        codes of type `UInt`; `codebook` int8 [N or 1, 2**bits], ascending along a row, for `Lut`.
        """
        return self.format.scale_type.stored(self.scales)

    def column_scales(self, columns: Columns) -> torch.Tensor:
        """float32 [N, C]: the scale of every weight in the given columns."""
        return self._by_column(self.scales, columns)

    def _by_column(self, per_group: torch.Tensor, columns: Columns) -> torch.Tensor:
        """[N, G] as [N, C]; a view where one column is asked for."""
        length = self.format.group_length(self.in_features)
        if isinstance(columns, int):
            group = columns // length
            return per_group[:, group : group + 1]
        if columns == slice(None):  # its derivative is a sum over every group, and no search for equal indices
            return per_group.repeat_interleave(length, 1)[:, : self.in_features]
        return per_group[:, self.format.group_of(self.in_features, per_group.device)[columns]]


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight matrix as codes on a grid.

    Attributes:
        grid: the values that codes stand for.
        codes: uint8 [N, K].
    """

    grid: Grid
    codes: torch.Tensor

    def rows(self, rows: slice) -> QuantizedWeight:
        """Some rows of the matrix."""
        N = len(self.codes)
        tensors = {field.name: getattr(self.grid, field.name) for field in fields(self.grid)}
        taken: dict[str, Any] = {
            name: each[rows] for name, each in tensors.items() if isinstance(each, torch.Tensor) and len(each) == N
        }
        return QuantizedWeight(replace(self.grid, **taken), self.codes[rows])

    @property
    def format(self) -> Format:
        """The format of the grid."""
        return self.grid.format

    def decode(self) -> torch.Tensor:
        """The matrix that the codes stand for, its inputs as they were: float32 [N, K]."""
        matrix = self.grid.decode(self.codes, slice(None))
        return rotate_back(matrix) if self.format.rotated else matrix
