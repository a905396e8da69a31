"""What a model takes, and those of its inputs that follow from the token ids."""

from __future__ import annotations

__all__ = ["InputSpec", "declared_shape", "declared_sizes", "derive", "holds_past"]

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qxcompiler_runtime.caches import is_past
from qxcompiler_runtime.configuration import head_size


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: the input's name in the graph.
        dtype: its element type; object for strings.
        shape: its dimensions: a number where fixed, a name or None where free; None if the rank is unknown.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape can be fed to the input."""
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(
            not isinstance(mine, int) or mine == size for mine, size in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        dims = "any shape" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        kind = "string" if self.dtype.kind == "O" else str(self.dtype)
        return f"{self.name} {kind} [{dims}]"


def declared_shape(name: str, shape: Iterable[object], model: Path | None) -> tuple[int | str | None, ...]:
    """The dimensions that a model declares of an input.

    Where those of a past leave the size of a head open, as onnxruntime-genai's builder writes them, the configuration
    beside the model's file says it.
    """
    sizes = declared_sizes(shape)
    if is_past(name) and len(sizes) == 4 and model is not None and not any(isinstance(size, int) for size in sizes[2:]):
        return *sizes[:3], head_size(model.parent) or sizes[3]
    return sizes


def declared_sizes(shape: Iterable[object]) -> tuple[int | str | None, ...]:
    """The dimensions of a declared shape: numbers where fixed, names or None where free; some exporters write -1."""
    sizes = [size if isinstance(size, (int, str)) else getattr(size, "value", None) for size in shape]
    return tuple(None if isinstance(size, int) and size < 0 else size for size in sizes)


def derive(spec: InputSpec, sample: Mapping[str, npt.NDArray[Any]], past_length: int) -> npt.NDArray[Any] | None:
    """The value of an input that follows from the token ids, or None."""
    ids = next((value for name, value in sample.items() if name.endswith("input_ids")), None)
    batch, length = ids.shape if ids is not None and ids.ndim == 2 else (1, None)
    if holds_past(spec) and past_length == 0 and spec.shape is not None:
        # The free axes of a cache are the batch, which leads, and the past.
        free = [batch, *([0] * (len(spec.shape) - 1))]
        return np.zeros([d if isinstance(d, int) else f for d, f in zip(spec.shape, free, strict=True)], spec.dtype)
    if spec.name == "use_cache_branch":
        return np.full(1, past_length > 0, spec.dtype)
    if length is None:
        return None
    end = past_length + length
    match spec.name.removeprefix("decoder_"):
        case "attention_mask":
            return np.ones((batch, end), spec.dtype)
        case "position_ids":
            return np.tile(np.arange(past_length, end, dtype=spec.dtype), (batch, 1))
        case "cache_position":
            return np.arange(past_length, end, dtype=spec.dtype)
        case "token_type_ids":
            return np.zeros((batch, length), spec.dtype)
    return None


def holds_past(spec: InputSpec) -> bool:
    """Whether an input takes keys or values that a model kept, with a batch, a length and a size."""
    return is_past(spec.name) and spec.shape is not None and len(spec.shape) >= 3
