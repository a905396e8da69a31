"""Models in onnxruntime sessions: what they take and give, and failures in one line."""

from __future__ import annotations

__all__ = ["Model", "ModelFile", "rank"]

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from qxcompiler_runtime.errors import ModelError
from qxcompiler_runtime.inputs import InputSpec, declared_shape
from qxcompiler_runtime.library import session

_NUMPY_NAMES = {"float": "float32", "double": "float64", "string": "object"}


class Model(ABC):
    """A model in a session.

    Attributes:
        path: the ONNX file, or what messages call the model.
    """

    path: Path

    @property
    @abstractmethod
    def session(self) -> onnxruntime.InferenceSession:
        """The whole model."""

    @cached_property
    def outputs(self) -> dict[str, int | None]:
        """The outputs' names, each with its rank (None if unknown), in the graph's order."""
        return {value.name: rank(value.shape) for value in self.session.get_outputs()}

    @cached_property
    def inputs(self) -> list[InputSpec]:
        """What the model takes.

        Raises:
            ModelError: an input is a sequence, a map or optional, or of a type that NumPy was not taught.
        """
        return [self._spec(value) for value in self.session.get_inputs()]

    def failure(self, error: Exception) -> ModelError:
        """The one line for an error of onnxruntime."""
        return ModelError(self.path, f"failed to run ({error})", "check that the samples fit the model")

    def _spec(self, value: Any) -> InputSpec:
        element = value.type.removeprefix("tensor(").removesuffix(")").replace("float8", "float8_")
        try:
            dtype = np.dtype(_NUMPY_NAMES.get(element, element))
        except TypeError as error:
            problem = f"input {value.name} has type {value.type}"
            raise ModelError(self.path, problem, "use a model whose inputs are tensors") from error
        if rank(value.shape) is None:
            return InputSpec(value.name, dtype, None)
        file = self.path if self.path.is_file() else None
        return InputSpec(value.name, dtype, declared_shape(value.name, value.shape, file))


class ModelFile(Model):
    """An ONNX file.

    Args:
        path: the file.
        threads: threads of one operator; None lets onnxruntime choose.

    Raises:
        ModelError: the model cannot be loaded.
        QxcError: the operators are not built.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        self.path = Path(path)
        self._session = session(path, threads=threads)

    @property
    def session(self) -> onnxruntime.InferenceSession:
        """The model in onnxruntime."""
        return self._session


def rank(shape: Any) -> int | None:
    """The number of axes of a shape that onnxruntime declares, None if it is unknown."""
    return len(shape) if isinstance(shape, (list, tuple)) else None
