"""Models under measurement: a session, what it takes, and runs whose failures are one line."""

from __future__ import annotations

__all__ = ["Runner"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qxcompiler.calibration.samples import InputSpec
from qxcompiler.errors import ModelError
from qxcompiler.runtime_ops import session


class Runner:
    """A model in an onnxruntime session.

    Args:
        path: the ONNX file.
        threads: threads of one operator; None lets onnxruntime choose.

    Attributes:
        path: the ONNX file.
        inputs: what the model takes.
        outputs: the outputs' names, each with its rank (None if unknown), in the graph's order.

    Raises:
        ModelError: the file cannot be loaded, or has inputs that are not tensors of numbers.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ModelError(self.path, "no such file", "give an ONNX file")
        self.session = session(self.path, threads=threads)
        self.inputs = [self._spec(value) for value in self.session.get_inputs()]
        self.outputs = {value.name: _rank(value.shape) for value in self.session.get_outputs()}

    def run(self, sample: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]) -> list[npt.NDArray[Any]]:
        """The values of some outputs.

        Raises:
            ModelError: onnxruntime could not run the model.
        """
        try:
            values: list[npt.NDArray[Any]] = self.session.run(list(outputs), dict(sample))
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise self.failure(error) from error
        return values

    def failure(self, error: Exception) -> ModelError:
        """The one line for an error of onnxruntime."""
        return ModelError(self.path, f"failed to run ({error})", "check that the samples fit the model")

    def _spec(self, value: Any) -> InputSpec:
        element = value.type.removeprefix("tensor(").removesuffix(")").upper()
        if element == "STRING" or element not in ir.DataType.__members__:
            raise ModelError(
                self.path, f"input {value.name} has type {value.type}", "use a model whose inputs are numbers"
            )
        shape = None if _rank(value.shape) is None else tuple(value.shape)
        return InputSpec(value.name, np.dtype(ir.DataType[element].numpy()), shape)


def _rank(shape: Any) -> int | None:
    return len(shape) if isinstance(shape, (list, tuple)) else None
