"""How closely the outputs of a model follow those of a reference, in figures that fit whatever the outputs are.

Verification, `qxc eval --reference` and the corpus use this one measure.
"""

from __future__ import annotations

__all__ = ["Comparison", "OutputSimilarity", "SimilarityEvaluation", "compared_outputs", "evaluate_similarity"]

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from qxcompiler.calibration.arrays import is_float
from qxcompiler.calibration.samples import Sample
from qxcompiler.errors import ModelError
from qxcompiler.evaluation.running import Runner
from qxcompiler_runtime.caches import is_present

# A ratio over fewer numbers than this says little: one number has a cosine of 1 or -1.
FEW = 16
# A root mean square under this is rounding noise beside numbers of order 1: no ratio to it means anything.
NEAR_ZERO = 1e-6
# Numbers that are looked at together.
_CHUNK = 1 << 20

_Floats: TypeAlias = npt.NDArray[np.float64]


class OutputSimilarity(BaseModel):
    """One output beside the reference's, over all samples together.

    Figures that an output cannot have are None: an output of integers has no error, one of zeros no cosine.

    Attributes:
        judged: whether the figures say how good the output is. False where it holds too few numbers, where the
            reference is too near zero for a ratio, where no shape fits the reference's, or where the reference differs
            from itself; `note` says which.
        cosine_similarity: mean over the vectors along the last axis, rows that are zero in both left out; over all
            numbers together where the last axis holds one.
        relative_error: |Y - Y_ref| / |Y_ref|, L2, over what is finite in both.
        error_to_spread: root mean square of Y - Y_ref over the standard deviation of the numbers of Y_ref: for few
            numbers, which may all lie near one value, the more honest figure.
        agreement: share of equal elements among integers, booleans and strings.
        values: how many elements were compared.
        broken: how many are NaN where the reference has a number, or infinite where it has no such infinity anywhere.
        moved: how many others are finite in one of both only; equal infinities, and NaN in both, are equal.
        misfits: in how many samples its shape (for a sequence: in how many elements) differs from the reference's;
            these are not compared.
        note: what a reader should know of the figures; empty if nothing.
    """

    judged: bool
    cosine_similarity: float | None = None
    relative_error: float | None = None
    error_to_spread: float | None = None
    agreement: float | None = None
    values: int
    broken: int = 0
    moved: int = 0
    misfits: int = 0
    note: str = ""


class SimilarityEvaluation(BaseModel):
    """How closely a model follows its reference.

    Attributes:
        windows: how many samples were compared.
        cosine_similarity: mean over the outputs that are judged and have one.
        relative_error: mean over the outputs that are judged and have one.
        agreement: mean over the outputs of integers, booleans and strings.
        outputs: the figures of each output.
        seconds: time spent in the model under measurement.
    """

    kind: Literal["similarity"] = "similarity"
    windows: int
    cosine_similarity: float | None
    relative_error: float | None
    agreement: float | None = None
    outputs: dict[str, OutputSimilarity]
    seconds: float


def compared_outputs(names: Iterable[str]) -> list[str]:
    """The outputs worth comparing: cached keys and values are left out, unless there are no others."""
    names = list(names)
    return [name for name in names if not is_present(name)] or names


class Comparison:
    """Collects the figures of each output, a sample at a time.

    Args:
        names: the outputs' names.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._outputs = {name: _Output() for name in names}

    def add(self, actual: Sequence[Any], expected: Sequence[Any]) -> None:
        """Compare the outputs of one sample.

        Args:
            actual: a value an output, as onnxruntime gives it: an array; a list for a sequence, a dictionary for a
                map, None for an optional output that is absent.
            expected: the reference's, likewise.
        """
        for output, y, y_ref in zip(self._outputs.values(), actual, expected, strict=True):
            output.add(y, y_ref)

    def figures(self) -> dict[str, OutputSimilarity]:
        """The figures over all samples added."""
        return {name: output.figures() for name, output in self._outputs.items()}


def evaluate_similarity(
    model: Runner, reference: Runner, pairs: Iterable[tuple[Sample, Sample]]
) -> SimilarityEvaluation:
    """Compare the outputs of two models, holding one sample at a time.

    Args:
        model: the model under measurement.
        reference: the model that it should follow, with the same outputs.
        pairs: each sample as inputs of the model and as inputs of the reference.

    Raises:
        ModelError: a model cannot be run; its outputs never fit the reference's, or hold NaN or infinity where the
            reference has none.
    """
    names = compared_outputs(reference.outputs)
    if missing := [name for name in names if name not in model.outputs]:
        raise ModelError(model.path, f"has no output {missing[0]}", f"give a reference other than {reference.path}")
    comparison = Comparison(names)
    windows = 0
    seconds = 0.0
    for sample, reference_sample in pairs:
        start = time.perf_counter()
        actual = model.run(sample, names)
        seconds += time.perf_counter() - start
        comparison.add(actual, reference.run(reference_sample, names))
        windows += 1
    outputs = comparison.figures()
    for name, output in outputs.items():
        if output.broken:
            problem = f"output {name} holds NaN or infinity where the reference has none"
            raise ModelError(model.path, problem, "compile again with more bits")
        if output.misfits and not output.values:
            raise ModelError(
                model.path, f"output {name} has {output.note}", "give a reference of the same architecture"
            )
    judged = [output for output in outputs.values() if output.judged]
    return SimilarityEvaluation(
        windows=windows,
        cosine_similarity=_mean(output.cosine_similarity for output in judged),
        relative_error=_mean(output.relative_error for output in judged),
        agreement=_mean(output.agreement for output in judged),
        outputs=outputs,
        seconds=seconds,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


@dataclass
class _Output:
    """Sums over the samples of one output."""

    # over the numbers that are finite in both
    count: int = 0
    error: float = 0.0  # squared norms: of the error, of the model's and of the reference's
    norm: float = 0.0
    norm_ref: float = 0.0
    dot: float = 0.0
    origin: float | None = None  # the reference's first number, from which its spread is counted
    shifted: float = 0.0
    shifted_squares: float = 0.0
    # over the vectors along the last axis
    vectors: int = 0
    cosines: float = 0.0
    # over what is not finite in both
    new_nan: int = 0
    new_infinity: dict[float, int] = field(default_factory=lambda: {math.inf: 0, -math.inf: 0})
    lost: int = 0
    infinities: set[float] = field(default_factory=set)  # those of the reference
    same: int = 0
    # over integers, booleans and strings
    discrete: int = 0
    equal: int = 0
    # over arrays
    arrays: int = 0
    misfits: list[str] = field(default_factory=list)

    def add(self, y: Any, y_ref: Any) -> None:
        for a, b in _pairs(y, y_ref):
            self.arrays += 1
            if misfit := _misfit(a, b):
                self.misfits.append(misfit)
            elif is_float(b.dtype):
                self._add_floats(a, b)
            else:
                self.discrete += b.size
                self.equal += int(np.sum(a == b))

    def _add_floats(self, y: npt.NDArray[Any], y_ref: npt.NDArray[Any]) -> None:
        """Some rows at a time, so that memory does not hold logits in float64."""
        width = y_ref.shape[-1] if y_ref.ndim else 1
        if not y_ref.size:
            return
        rows, rows_ref = y.reshape(-1, width), y_ref.reshape(-1, width)
        step = max(1, _CHUNK // width)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            self._add_rows(rows[part].astype(np.float64), rows_ref[part].astype(np.float64))

    def _add_rows(self, y: _Floats, y_ref: _Floats) -> None:
        finite, finite_ref = np.isfinite(y), np.isfinite(y_ref)
        both = finite & finite_ref
        values, values_ref = y.ravel(), y_ref.ravel()
        if not both.all():
            values, values_ref = y[both], y_ref[both]
            new = ~finite & finite_ref
            self.new_nan += int(np.isnan(y[new]).sum())
            for sign in (math.inf, -math.inf):
                self.new_infinity[sign] += int((y[new] == sign).sum())
                if (y_ref == sign).any():
                    self.infinities.add(sign)
            same = ~finite & ~finite_ref & ((y == y_ref) | (np.isnan(y) & np.isnan(y_ref)))
            self.same += int(same.sum())
            self.lost += int((~finite_ref & ~same).sum())
            y, y_ref = np.where(both, y, 0), np.where(both, y_ref, 0)
        self.count += values_ref.size
        with np.errstate(over="ignore", invalid="ignore"):  # doubles may be too large to square: said in the end
            self.error += _squared_norm(values - values_ref)
            self.norm += _squared_norm(values)
            self.norm_ref += _squared_norm(values_ref)
            self.dot += float(values @ values_ref)
            if self.origin is None and values_ref.size:
                self.origin = float(values_ref[0])
            shifted = values_ref - (self.origin or 0.0)
            self.shifted += float(shifted.sum())
            self.shifted_squares += _squared_norm(shifted)
            if y_ref.shape[-1] > 1:
                self._add_vectors(y, y_ref)

    def _add_vectors(self, y: _Floats, y_ref: _Floats) -> None:
        lengths, lengths_ref = (np.sqrt(np.einsum("rk,rk->r", rows, rows)) for rows in (y, y_ref))
        zero = 1e-6 * lengths_ref.max(initial=0.0)
        rows = (lengths > zero) | (lengths_ref > zero)
        products = lengths[rows] * lengths_ref[rows]
        dots = np.einsum("rk,rk->r", y, y_ref)[rows]
        self.vectors += int(rows.sum())
        self.cosines += float(np.divide(dots, products, out=np.zeros_like(dots), where=products > 0).sum())

    def figures(self) -> OutputSimilarity:
        broken = self.new_nan + sum(n for sign, n in self.new_infinity.items() if sign not in self.infinities)
        moved = self.lost + sum(n for sign, n in self.new_infinity.items() if sign in self.infinities)
        values = self.count + self.discrete + self.same + moved + broken
        cosine = relative = to_spread = None
        notes = [self._shapes()] if self.misfits else []
        judged = bool(values)
        if not values and not self.misfits:
            notes.append("holds no values")
        if self.count and not math.isfinite(self.error + self.norm + self.norm_ref + self.shifted_squares):
            judged = False
            notes.append("holds numbers too large for a ratio")
        elif self.count:
            cosine, relative, to_spread = self._ratios()
            if self.error and (reason := self._doubt()):
                judged = False
                notes.append(reason)
        if broken:
            notes.append(f"{broken} of {values} values are NaN or infinite where the original has none")
        if moved:
            notes.append(f"{moved} of {values} values are finite in one of both only")
        return OutputSimilarity(
            judged=judged,
            cosine_similarity=cosine,
            relative_error=relative,
            error_to_spread=to_spread,
            agreement=self.equal / self.discrete if self.discrete else None,
            values=values,
            broken=broken,
            moved=moved,
            misfits=len(self.misfits),
            note="; ".join(notes),
        )

    def _ratios(self) -> tuple[float | None, float | None, float | None]:
        """Cosine similarity, error relative to the reference's norm, and to its spread."""
        if self.error == 0:
            return 1.0, 0.0, 0.0
        length, length_ref = math.sqrt(self.norm), math.sqrt(self.norm_ref)
        cosine = None
        if self.vectors:
            cosine = self.cosines / self.vectors
        elif length and length_ref:
            cosine = self.dot / (length * length_ref)
        spread = self.shifted_squares - self.shifted**2 / self.count
        return (
            cosine,
            math.sqrt(self.error) / length_ref if length_ref else None,
            # rounding leaves some spread where all numbers are equal
            math.sqrt(self.error / spread) if spread > 1e-12 * self.norm_ref else None,
        )

    def _doubt(self) -> str:
        """Why the ratios say little, or nothing."""
        rms, rms_ref = math.sqrt(self.norm / self.count), math.sqrt(self.norm_ref / self.count)
        if rms_ref < NEAR_ZERO:
            return f"too near zero for a ratio (root mean square {rms:.1e}, the original's {rms_ref:.1e})"
        if self.count < FEW:
            return f"only {self.count} numbers, too few to judge by"
        return ""

    def _shapes(self) -> str:
        return f"another shape than the original's in {len(self.misfits)} of {self.arrays} cases ({self.misfits[0]})"


def _squared_norm(values: _Floats) -> float:
    return float(values @ values)


def _pairs(y: Any, y_ref: Any) -> Iterator[tuple[Any, Any]]:
    """The arrays of two values of the same kind, side by side; where the kinds differ, the values as they are."""
    if isinstance(y, list) and isinstance(y_ref, list) and len(y) == len(y_ref):
        for a, b in zip(y, y_ref, strict=True):
            yield from _pairs(a, b)
    elif isinstance(y, dict) and isinstance(y_ref, dict) and y.keys() == y_ref.keys():
        for key in y_ref:
            yield from _pairs(y[key], y_ref[key])
    elif y is not None or y_ref is not None:
        yield _array(y), _array(y_ref)


def _array(value: Any) -> Any:
    """Numbers and strings as arrays; sequences, maps and what is absent as they are."""
    return value if isinstance(value, (list, dict)) or value is None else np.asarray(value)


def _misfit(y: Any, y_ref: Any) -> str:
    """Why two values cannot be compared element by element; empty if they can."""
    if not (isinstance(y, np.ndarray) and isinstance(y_ref, np.ndarray)):
        return f"{_kind(y)}, not {_kind(y_ref)}"
    if y.shape != y_ref.shape:
        return f"{list(y.shape)}, not {list(y_ref.shape)}"
    if y.dtype.kind != y_ref.dtype.kind and {y.dtype.kind, y_ref.dtype.kind} - {"O", "U", "S"}:
        return f"{y.dtype}, not {y_ref.dtype}"
    return ""


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, (list, dict)):
        return f"{len(value)} elements"
    return f"an array of shape {list(value.shape)}"
