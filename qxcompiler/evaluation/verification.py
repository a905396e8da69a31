"""Run a compiled model beside the original, and refuse to call a broken one done."""

from __future__ import annotations

__all__ = ["Verification", "verify"]

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from qxcompiler.calibration.parts import FrugalModel
from qxcompiler.calibration.samples import Sample
from qxcompiler.errors import CalibrationError, ModelError, VerificationError
from qxcompiler.evaluation.running import Runner
from qxcompiler.evaluation.similarity import Comparison, OutputSimilarity, compared_outputs
from qxcompiler.formats import CACHE_FORMATS, CacheFormat
from qxcompiler_runtime.caches import CACHE_FORMAT, is_past

# By bits of the coarsest format: above what unrelated outputs have, and far below what sound compiles leave. Rounding
# to nearest with one scale a row, the worst there is, leaves a sentence encoder of 22 million weights a similarity of
# 0.9995, 0.994, 0.98, 0.94, 0.81 and 0.29 with 8, 6, 5, 4, 3 and 2 bits.
_FLOORS = {8: 0.8, 6: 0.7, 5: 0.6, 4: 0.5, 3: 0.4}
_LOWEST_FLOOR = 0.1
# An output this many times longer than the original's is another one, whatever its direction.
_FAR_OFF = 10.0
# Outputs that differ by more than this between two runs of the original do not depend on the inputs alone.
_REPEATED = 1e-3


class Verification(BaseModel):
    """The compiled model beside the original, on samples not calibrated on.

    Attributes:
        samples: how many.
        made_up: whether these inputs were made up from what the model declares.
        cosine_similarity: of each output that is judged and has one.
        outputs: the figures of each output, run with the library where the model has operators of ours.
        without_library: the same on the first sample, where onnxruntime computes the packed operators by their
            definition; nothing for a model in another dialect, which never runs with the library.
    """

    samples: int
    made_up: bool = False
    cosine_similarity: dict[str, float]
    outputs: dict[str, OutputSimilarity]
    without_library: dict[str, OutputSimilarity]


def verify(
    compiled: str | Path,
    original: str | Path | bytes,
    samples: Iterable[Sample],
    *,
    bits: float = 0,
    made_up: bool = False,
    suspects: Sequence[str] = (),
    library: bool = True,
) -> Verification:
    """Compare the outputs of a compiled model with the original's: with the library on all samples, and without it
    on the first.

    Where the compiled model keeps keys and values in a format, those of the samples are given so.

    Memory holds two sessions, the outputs of the first sample, and those of one other. Weights in files of external
    data stay there.

    Args:
        compiled: the compiled ONNX file.
        original: the ONNX file that it was compiled from, or that model as bytes.
        samples: inputs of both, at least one.
        bits: of the coarsest weight format in the compiled model; where unknown, the most lenient floor holds.
        made_up: whether the samples come from `made_up_samples`; said in the result.
        suspects: the sites with the largest error, for the message.
        library: whether the compiled model has operators of ours; if not, it runs in stock onnxruntime alone.

    Raises:
        VerificationError: the compiled model cannot be loaded or run where the original can; or an output is not
            finite where the original is, has little to do with the original's, is many times larger, or has another
            shape although the original declares it.
        ModelError: the original cannot be loaded.
        CalibrationError: the original fails on the samples; or there are none.
    """
    subject = "the model" if isinstance(original, bytes) else original
    broken = _Broken(subject, bits, suspects)
    reference = Runner(FrugalModel(original))
    names = compared_outputs(reference.outputs)
    packed = broken.load(compiled, names, library=library)
    kept_as = CACHE_FORMATS.get(packed.session.get_modelmeta().custom_metadata_map.get(CACHE_FORMAT, ""))
    comparison = Comparison(names)
    first: tuple[Sample, list[Any]] | None = None
    unsteady: dict[str, str] = {}
    count = 0
    for sample in samples:
        expected = _expected(reference, sample, names)
        if first is None:
            first = sample, expected
            unsteady = _unsteady(names, expected, _expected(reference, sample, names))
        actual = broken.run(packed, _kept(sample, kept_as), names)
        broken.check_shapes(reference.declared_shapes(sample), names, actual, expected)
        comparison.add(actual, expected)
        count += 1
    if first is None:
        raise CalibrationError("verification", "has no samples", "give at least one")
    shapes = reference.declared_shapes(first[0])
    del reference, packed
    outputs = _said(comparison.figures(), unsteady)
    broken.check(outputs, "")

    without_library: dict[str, OutputSimilarity] = {}
    if library:
        stock = broken.load(compiled, names, library=False, in_parts=True)
        comparison = Comparison(names)
        actual = broken.run(stock, _kept(first[0], kept_as), names)
        broken.check_shapes(shapes, names, actual, first[1])
        comparison.add(actual, first[1])
        without_library = _said(comparison.figures(), unsteady)
        broken.check(without_library, " without the library")
    return Verification(
        samples=count,
        made_up=made_up,
        cosine_similarity={
            name: output.cosine_similarity
            for name, output in outputs.items()
            if output.judged and output.cosine_similarity is not None
        },
        outputs=outputs,
        without_library=without_library,
    )


def _kept(sample: Sample, fmt: CacheFormat | None) -> Sample:
    """A sample whose keys and values are as the compiled model keeps them."""
    if fmt is None:
        return sample
    return {name: fmt.encode(value) if is_past(name) else value for name, value in sample.items()}


def floor(bits: float) -> float:
    """The cosine similarity under which no sound compile falls, by the bits of its coarsest weights."""
    return next((floor for least, floor in _FLOORS.items() if bits >= least), _LOWEST_FLOOR)


class _Broken:
    """Turns whatever is wrong with a compiled model into the error that says so.

    Args:
        subject: what the error is about.
        bits: of the coarsest weight format.
        suspects: the sites with the largest error.
    """

    def __init__(self, subject: object, bits: float, suspects: Sequence[str]) -> None:
        self._subject = subject
        self._floor = floor(bits)
        self._suspects = f", most at {', '.join(suspects)}" if suspects else ""

    def load(self, compiled: str | Path, names: Sequence[str], *, library: bool, in_parts: bool = False) -> Runner:
        try:
            model = FrugalModel(compiled, library=library) if in_parts else compiled
            runner = Runner(model, frugal=True, library=library)
        except ModelError as error:
            raise self._error(str(error), "report this as a bug") from error
        if missing := [name for name in names if not in_parts and name not in runner.outputs]:
            raise self._error(f"output {missing[0]} is gone", "report this as a bug")
        return runner

    def run(self, compiled: Runner, sample: Sample, names: Sequence[str]) -> list[Any]:
        try:
            return compiled.run(sample, names)
        except ModelError as error:
            raise self._error(str(error), "report this as a bug") from error

    def check_shapes(
        self,
        declared: Mapping[str, Sequence[int | None] | None],
        names: Sequence[str],
        actual: Sequence[Any],
        expected: Sequence[Any],
    ) -> None:
        """Refuse a shape that differs from the original's where the data cannot be the reason."""
        for name, y, y_ref in zip(names, actual, expected, strict=True):
            sizes = declared[name]
            if sizes is None or not (isinstance(y, np.ndarray) and isinstance(y_ref, np.ndarray)):
                continue
            if len(sizes) != y_ref.ndim or (
                y.ndim == y_ref.ndim
                and all(a == b or b != size for a, b, size in zip(y.shape, y_ref.shape, sizes, strict=True))
            ):
                continue
            problem = f"output {name} has shape {list(y.shape)}, not {list(y_ref.shape)}"
            raise self._error(problem, "report this as a bug")

    def check(self, outputs: Mapping[str, OutputSimilarity], how: str) -> None:
        for name, output in outputs.items():
            if output.broken:
                raise self._error(
                    f"output {name}{how}: {output.note}{self._suspects}",
                    "use more bits, smaller groups, or --keep these sites",
                )
        wrong = {name: output for name, output in outputs.items() if output.judged and self._is_wrong(output)}
        if not wrong:
            return
        name = max(wrong, key=lambda name: wrong[name].relative_error or 0.0)
        cosine = wrong[name].cosine_similarity
        raise self._error(
            f"output {name}{how} is {wrong[name].relative_error or 0:.0%} off the original's, cosine similarity "
            f"{'unknown' if cosine is None else f'{cosine:.3f}'}{self._suspects}",
            "use more bits, smaller groups, --quantizer gptaq, or --keep the sites with the largest error",
        )

    def _is_wrong(self, output: OutputSimilarity) -> bool:
        cosine, error = output.cosine_similarity, output.relative_error
        moved = output.moved > output.values / 2
        return moved or (cosine is not None and cosine < self._floor) or (error is not None and error > _FAR_OFF)

    def _error(self, problem: str, remedy: str) -> VerificationError:
        return VerificationError(self._subject, f"its compiled model is broken ({problem})", remedy)


def _expected(reference: Runner, sample: Sample, names: Sequence[str]) -> list[Any]:
    try:
        return reference.run(sample, names)
    except ModelError as error:
        raise CalibrationError(
            "samples", f"the original fails on them ({error})", "give samples that the model takes"
        ) from error


def _unsteady(names: Sequence[str], once: Sequence[Any], again: Sequence[Any]) -> dict[str, str]:
    """The outputs that the same inputs give two values."""
    comparison = Comparison(names)
    comparison.add(again, once)
    return {
        name: "differs from run to run in the original itself"
        for name, output in comparison.figures().items()
        if output.misfits
        or output.broken
        or output.moved
        or (output.relative_error or 0) > _REPEATED
        or (output.agreement is not None and output.agreement < 1)
    }


def _said(outputs: Mapping[str, OutputSimilarity], unsteady: Mapping[str, str]) -> dict[str, OutputSimilarity]:
    """The figures, with outputs that change by themselves not judged."""
    return {
        name: output.model_copy(update={"judged": False, "note": unsteady[name], "broken": 0})
        if name in unsteady
        else output
        for name, output in outputs.items()
    }
