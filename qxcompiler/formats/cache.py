"""Keys and values that a model keeps, in fewer bits: a row, one token of one head, is bytes with a scale of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from qxcompiler.formats.rotation import rotate

__all__ = ["CACHE_FORMATS", "LEAST_SCALE", "NAN_SCALE", "SCALE_BYTES", "CacheFormat"]

SCALE_BYTES = 2  # the upper half of a float32, at the row's end
LEAST_SCALE = 2.0**-126  # of normal numbers: a row with less is zero
NAN_SCALE = 0x7FC0  # of a row that holds NaN or infinity


@dataclass(frozen=True)
class CacheFormat:
    """A row of D numbers as codes of 8 or 4 bits: `scale * (code - zero_point)`.

    Attributes:
        name: `int8` or `int4`.
        bits: of a code.
        zero_point: what stands for 0.
        largest: how far codes are from the zero point, at most.
        rotated: codes stand for the row times R (`rotation.py`).
    """

    name: str
    bits: int
    zero_point: float
    largest: float
    rotated: bool

    @property
    def operator_suffix(self) -> str:
        """What names of operators say of it."""
        return self.name.capitalize()

    def code_bytes(self, head_size: int) -> int:
        """Bytes of a row's codes."""
        return -(-head_size * self.bits // 8)

    def row_bytes(self, head_size: int) -> int:
        """Bytes of a row of so many numbers."""
        return self.code_bytes(head_size) + SCALE_BYTES

    def encode(self, rows: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
        """Rows [..., D] as bytes [..., row_bytes(D)]: docs/formats.md says which."""
        X: npt.NDArray[np.float32] = rows.astype(np.float32)
        if self.rotated:
            X = rotate(torch.from_numpy(X)).numpy()
        with np.errstate(invalid="ignore"):
            exact = np.abs(X).max(-1, keepdims=True) / np.float32(self.largest) + (X * 0).sum(-1, keepdims=True)
        usable = exact >= LEAST_SCALE
        upper = ((np.where(usable, exact, 1).astype(np.float32).view(np.uint32) + 0xFFFF) >> 16).astype(np.uint32)
        scale = (upper << 16).view(np.float32)
        shifted = np.where(usable, X, 0) / scale + np.float32(self.zero_point + 0.5)
        codes = shifted.astype(np.uint8)
        if self.bits == 4:
            half = self.code_bytes(X.shape[-1])
            high = np.zeros((*X.shape[:-1], half), np.uint8)
            high[..., : X.shape[-1] - half] = codes[..., half:]
            codes = (codes[..., :half] | high << 4).astype(np.uint8)
        stored = np.where(usable, upper, np.where(np.isnan(exact), NAN_SCALE, 0))
        return np.concatenate([codes, (stored & 0xFF).astype(np.uint8), (stored >> 8).astype(np.uint8)], -1)


CACHE_FORMATS = {
    each.name: each
    for each in (
        CacheFormat("int8", 8, zero_point=128, largest=127, rotated=False),
        CacheFormat("int4", 4, zero_point=7.5, largest=7.5, rotated=True),
    )
}
