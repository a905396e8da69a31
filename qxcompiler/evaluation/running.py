"""Models under measurement: a session, what it takes, and runs whose failures are one line."""

from __future__ import annotations

__all__ = ["Runner"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import onnxruntime

from qxcompiler.calibration.feeding import run
from qxcompiler.calibration.parts import FrugalModel
from qxcompiler_runtime import session
from qxcompiler_runtime.inputs import declared_sizes
from qxcompiler_runtime.model import Model, rank

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class _Whole:
    session: onnxruntime.InferenceSession

    def prepare(self, outputs: Sequence[str], samples: Sequence[Mapping[str, Any]]) -> Callable[[int], list[Any]]:
        return lambda index: run(self.session, outputs, samples[index])


class Runner(Model):
    """A model in an onnxruntime session.

    Args:
        model: the ONNX file, or a whole model as bytes, or one that is run in parts.
        threads: threads of one operator; None lets onnxruntime choose.
        frugal: for a few runs: weights are left in their files, and no memory is kept from run to run.
        library: False leaves our library out, in a session of the whole model.

    Attributes:
        path: the ONNX file; for messages, `the model` where it has none.

    Raises:
        ModelError: the model cannot be loaded.
    """

    def __init__(
        self,
        model: str | Path | bytes | FrugalModel,
        *,
        threads: int | None = None,
        frugal: bool = False,
        library: bool = True,
    ) -> None:
        source = model.model if isinstance(model, FrugalModel) else model
        self.path = Path("the model") if isinstance(source, bytes) else Path(source)
        self._model: FrugalModel | _Whole = (
            model
            if isinstance(model, FrugalModel)
            else _Whole(session(model, threads=threads, frugal=frugal, library=library))
        )

    @property
    def session(self) -> onnxruntime.InferenceSession:
        """The whole model."""
        return self._model.session

    def run(self, sample: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        """The values of some outputs.

        Raises:
            ModelError: onnxruntime could not run the model.
        """
        return self.prepare([sample], outputs)(0)

    def prepare(self, samples: Sequence[Mapping[str, Any]], outputs: Sequence[str]) -> Callable[[int], list[Any]]:
        """What computes some outputs for one of several samples, by its place, as often as asked.

        Raises:
            ModelError: onnxruntime could not run the model; also from what is returned.
        """
        one = self._failing(self._model.prepare)(outputs, samples)
        return self._failing(one)

    def _failing(self, function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def called(*arguments: P.args, **named: P.kwargs) -> T:
            try:
                return function(*arguments, **named)
            except Exception as error:  # onnxruntime's exceptions have no common base
                raise self.failure(error) from error

        return called

    def declared_shapes(self, sample: Mapping[str, Any]) -> dict[str, list[int | None] | None]:
        """The shapes that the outputs should have by the model's own word, given its inputs.

        Args:
            sample: the inputs, which say how large the symbolic sizes are.

        Returns:
            For each output its sizes, None where unsaid; None if its rank is unsaid.
        """
        known: dict[object, int] = {}
        for value in self.session.get_inputs():
            array = sample.get(value.name)
            if isinstance(array, np.ndarray) and rank(value.shape) == array.ndim:
                known |= {size: n for size, n in zip(value.shape, array.shape, strict=True) if isinstance(size, str)}
        return {
            value.name: None
            if rank(value.shape) is None
            else [size if isinstance(size, int) else known.get(size) for size in declared_sizes(value.shape)]
            for value in self.session.get_outputs()
        }
