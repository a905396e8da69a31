"""Run an onnxruntime session on arrays of any type: its own Python binding knows no bfloat16."""

from __future__ import annotations

__all__ = ["run"]

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch.utils.dlpack import from_dlpack

_BFLOAT16 = "tensor(bfloat16)"


def run(
    session: onnxruntime.InferenceSession,
    outputs: Sequence[str],
    feeds: Mapping[str, Any],
    options: onnxruntime.RunOptions | None = None,
) -> list[Any]:
    """The values of some outputs, bfloat16 and float8 in the types of `ml_dtypes` or, where they come out, as bytes.

    Args:
        session: the model.
        outputs: names of its outputs.
        feeds: a value for each of its inputs.
        options: of the run.
    """
    types = [value.type for value in session.get_outputs() if value.name in outputs]
    if _BFLOAT16 not in types and not any(_is_foreign(value) for value in feeds.values()):
        values: list[Any] = session.run(list(outputs), dict(feeds), options)
        return values
    given = {name: _to_runtime(value) for name, value in feeds.items()}
    return [_from_runtime(value) for value in session.run_with_ort_values(list(outputs), given, options)]


def _is_foreign(value: Any) -> bool:
    """Whether an array is of a type that somebody taught numpy."""
    return isinstance(value, np.ndarray) and value.dtype.isbuiltin == 2


def _to_runtime(value: Any) -> onnxruntime.OrtValue:
    if not _is_foreign(value):
        return onnxruntime.OrtValue.ortvalue_from_numpy(value)
    element = ir.DataType.from_numpy(value.dtype)
    plain = np.ascontiguousarray(value).view(f"u{value.dtype.itemsize}")
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(plain, element.value)


def _from_runtime(value: onnxruntime.OrtValue) -> Any:
    if value.data_type() != _BFLOAT16:
        return value.numpy()
    tensor = from_dlpack(value._ortvalue)  # the one way out that knows the type
    return tensor.view(torch.int16).numpy().copy().view(ml_dtypes.bfloat16)
