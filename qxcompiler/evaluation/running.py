"""Models under measurement: a session, what it takes, and runs whose failures are one line."""

from __future__ import annotations

__all__ = ["Runner"]

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qxcompiler.calibration.samples import InputSpec
from qxcompiler.errors import ModelError
from qxcompiler.runtime_ops import session


class Runner:
    """A model in an onnxruntime session.

    Args:
        model: the ONNX file, or a whole model as bytes.
        threads: threads of one operator; None lets onnxruntime choose.
        library: False computes the packed operators by their definition, as onnxruntime does without our library.

    Attributes:
        path: the ONNX file; for messages, `the model` where it has none.
        outputs: the outputs' names, each with its rank (None if unknown), in the graph's order.

    Raises:
        ModelError: the model cannot be loaded.
    """

    def __init__(self, model: str | Path | bytes, *, threads: int | None = None, library: bool = True) -> None:
        self.path = Path("the model") if isinstance(model, bytes) else Path(model)
        if not isinstance(model, bytes) and not self.path.is_file():
            raise ModelError(self.path, "no such file", "give an ONNX file")
        self.session = session(model, threads=threads, library=library)
        self.outputs = {value.name: _rank(value.shape) for value in self.session.get_outputs()}

    @cached_property
    def inputs(self) -> list[InputSpec]:
        """What the model takes.

        Raises:
            ModelError: an input is a sequence, a map or optional.
        """
        return [self._spec(value) for value in self.session.get_inputs()]

    def run(self, sample: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        """The values of some outputs.

        Raises:
            ModelError: onnxruntime could not run the model.
        """
        try:
            values: list[Any] = self.session.run(list(outputs), dict(sample))
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise self.failure(error) from error
        return values

    def failure(self, error: Exception) -> ModelError:
        """The one line for an error of onnxruntime."""
        return ModelError(self.path, f"failed to run ({error})", "check that the samples fit the model")

    def _spec(self, value: Any) -> InputSpec:
        element = value.type.removeprefix("tensor(").removesuffix(")").upper()
        if element not in ir.DataType.__members__:
            raise ModelError(
                self.path, f"input {value.name} has type {value.type}", "use a model whose inputs are tensors"
            )
        shape = None if _rank(value.shape) is None else tuple(value.shape)
        return InputSpec(value.name, np.dtype(ir.DataType[element].numpy()), shape)


def _rank(shape: Any) -> int | None:
    return len(shape) if isinstance(shape, (list, tuple)) else None
