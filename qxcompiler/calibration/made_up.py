"""Inputs made up from what a model declares, for a verification without samples.

Which sizes go together, and which numbers a model can take, is seldom declared. So guesses are tried on the original,
likely ones first, until it runs: one of each kind of token, image or signal, of a few small sizes.
"""

from __future__ import annotations

__all__ = ["made_up_samples"]

import itertools
import math
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx_ir as ir
import onnxruntime

from qxcompiler.calibration.arrays import is_float, names_batch, names_time
from qxcompiler.calibration.input_hints import IntegerUse, integer_use, merged, sizes
from qxcompiler.calibration.parts import FrugalModel
from qxcompiler.calibration.samples import Sample
from qxcompiler.errors import CalibrationError, ModelError, QxcError
from qxcompiler_runtime.caches import is_past_size
from qxcompiler_runtime.inputs import InputSpec, declared_sizes, derive

_LENGTHS = (8, 16, 32, 64, 128, 1, 2, 4, 224, 256, 512, 1024)
_RANKS = (2, 3, 4, 1, 0)  # where neither the model nor its operators tell
_RANDOM_TRIES = 64
_SECONDS_A_RUN, _SECONDS = 60, 20
_MOST_BYTES = 1 << 28
# Outputs with fewer numbers than this in all samples together cannot be judged: more samples then.
_ENOUGH, _MOST_SAMPLES, _SECONDS_FOR_MORE = 64, 64, 5

Style: TypeAlias = Literal["natural", "unit", "small", "ones", "zeros", "length"]
_STYLES: tuple[Style, ...] = ("natural", "unit", "small", "ones", "zeros", "length")


@dataclass(frozen=True)
class _Input:
    """An input to make up: `spec` with the free sizes filled in as far as the operators tell."""

    spec: InputSpec
    use: IntegerUse
    in_sequence: bool


@dataclass(frozen=True)
class _Guess:
    """How to make up a sample.

    Attributes:
        sizes: of every free dimension.
        ranks: of the inputs whose rank nobody tells.
        style: of the numbers.
        derived: whether masks, positions and caches follow from token ids, as in language models.
        choice: which of the constants that an input is compared with.
    """

    sizes: Mapping[str, int]
    length: int
    ranks: int
    style: Style = "natural"
    derived: bool = True
    choice: int = 0


def made_up_samples(model: ir.Model, original: str | Path | bytes, *, count: int = 2, seed: int = 0) -> list[Sample]:
    """Make up inputs that a model runs on.

    Symbolic sizes are small, and the same wherever they have the same name; integers stay within the tables that they
    index; inputs with defaults are left out. If the model refuses, other sizes and values are tried.

    Args:
        model: the model, normalized and not yet quantized.
        original: the ONNX file that it was read from, or that model as bytes: what the guesses are tried on.
        count: how many samples; there are more where the outputs hold few numbers.
        seed: equal seeds make equal samples; any number.

    Returns:
        At least one sample, all of the same sizes.

    Raises:
        CalibrationError: no guess runs, or onnxruntime cannot load the model; it says why.
    """
    seed %= 2**64  # numpy takes none below 0
    inputs = [_input(value) for value in model.graph.inputs if value.name not in model.graph.initializers]
    try:
        trial = _Trial(FrugalModel(original))
    except ModelError as error:
        raise CalibrationError(
            "made-up inputs", f"there is nothing to try them on ({error})", "run the model"
        ) from error
    best: _Guess | None = None
    problem = "it has no inputs that can be made up"
    tries = 0
    began = time.perf_counter()
    for guess in _guesses(inputs, seed):
        if time.perf_counter() - began > _SECONDS:
            problem = f"no more than {_SECONDS} s are spent on it; the last: {problem}"
            break
        tries += 1
        try:
            outputs = trial.run(_draw(inputs, guess, np.random.default_rng(seed)))
        except (QxcError, MemoryError) as error:
            problem = str(error)
            continue
        if outputs.finite:
            best = guess
            break
        best = best or guess
    if best is None:
        raise CalibrationError(
            "made-up inputs", f"the model takes none of {tries} ({problem})", "give samples with --calibration"
        )
    return _several(inputs, best, trial, count, seed)


def _several(inputs: Sequence[_Input], guess: _Guess, trial: _Trial, count: int, seed: int) -> list[Sample]:
    """Samples by one guess, more of them where the outputs hold few numbers."""
    samples: list[Sample] = []
    numbers = 0
    for number in range(2 * _MOST_SAMPLES):
        sample = _draw(inputs, guess, np.random.default_rng([seed, number] if number else seed))
        try:
            numbers += trial.run(sample).fewest
        except QxcError:
            if samples:
                continue
            raise
        samples.append(sample)
        enough = numbers >= _ENOUGH or len(samples) == _MOST_SAMPLES or trial.seconds > _SECONDS_FOR_MORE
        if len(samples) >= count and enough:
            break
    return samples


@dataclass(frozen=True)
class _Outcome:
    """Whether all outputs are finite, and how many numbers the one with the fewest has, empty ones aside."""

    finite: bool
    fewest: int


class _Trial:
    """Runs the original, each time for a minute at most.

    Attributes:
        seconds: spent so far.
    """

    def __init__(self, model: FrugalModel) -> None:
        self._model = model
        self._outputs = [value.name for value in model.session.get_outputs()]
        self._shapes = [value.shape for value in model.session.get_outputs()]
        self.seconds = 0.0

    def run(self, sample: Sample) -> _Outcome:
        options = onnxruntime.RunOptions()
        timer = threading.Timer(_SECONDS_A_RUN, lambda: setattr(options, "terminate", True))
        timer.start()
        began = time.perf_counter()
        try:
            outputs = self._model.run(self._outputs, sample, options)
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise CalibrationError("onnxruntime", f"{error}"[:300], "give samples with --calibration") from error
        finally:
            timer.cancel()
            self.seconds += time.perf_counter() - began
        # onnxruntime only warns of a rank other than the declared one, on which rewrites rely
        for name, shape, y in zip(self._outputs, self._shapes, outputs, strict=True):
            if shape and isinstance(y, np.ndarray) and y.ndim != len(shape):
                problem = f"output {name} has shape {list(y.shape)}, declared is {shape}"
                raise CalibrationError("onnxruntime", problem, "give samples with --calibration")
        floats = [y for y in outputs if isinstance(y, np.ndarray) and is_float(y.dtype)]
        finite = all(bool(np.isfinite(y.astype(np.float32, copy=False)).all()) for y in floats)
        return _Outcome(finite, min((y.size for y in floats if y.size), default=_ENOUGH))


def _input(value: ir.Value) -> _Input:
    in_sequence = isinstance(value.type, ir.SequenceType)
    element = value.type
    while isinstance(element, (ir.SequenceType, ir.OptionalType)):
        element = element.elem_type
    if not isinstance(element, ir.TensorType) or element.dtype == ir.DataType.UNDEFINED:
        raise CalibrationError(
            f"input {value.name}", f"{value.type} cannot be made up", "give samples with --calibration"
        )
    learnt = sizes(value)
    if value.shape is not None:
        shape: tuple[int | str | None, ...] | None = tuple(merged(declared_sizes(value.shape), learnt))
    elif learnt.rank is not None:
        shape = tuple(learnt.dims(learnt.rank))
    else:
        shape = None
    spec = InputSpec(value.name or "", np.dtype(element.dtype.numpy()), shape)
    return _Input(spec, integer_use(value), in_sequence)


def _guesses(inputs: Sequence[_Input], seed: int) -> Iterator[_Guess]:
    """Ways to make up samples, likely ones first."""
    free = sorted({symbol for given in inputs for symbol in _symbols(given.spec)})
    batches = {symbol for symbol in free if _is_batch(symbol, inputs)}
    ranks = range(len(_RANKS)) if any(given.spec.shape is None for given in inputs) else range(1)
    lengths = _LENGTHS if free or len(ranks) > 1 else _LENGTHS[:1]

    def even(length: int) -> dict[str, int]:
        return {symbol: 0 if is_past_size(symbol) else 1 if symbol in batches else length for symbol in free}

    last = {_symbol(given.spec, len(given.spec.shape) - 1) for given in inputs if given.spec.shape}

    def only_last(length: int) -> dict[str, int]:
        return {symbol: length if symbol in last else 1 for symbol in free}

    for rank, length in itertools.product(ranks, lengths):
        yield _Guess(even(length), length, rank)
        if only_last(length) != even(length):
            yield _Guess(only_last(length), length, rank)
    yield from (
        _Guess(even(length), length, rank, style, derived, choice)
        for style, length, rank, derived, choice in itertools.product(
            _STYLES, lengths[:4], ranks, (True, False), range(2)
        )
    )
    yield from (_Guess(dict.fromkeys(free, length), length, rank) for rank in ranks for length in lengths if free)
    draws = np.random.default_rng(seed)
    for number in range(_RANDOM_TRIES if free else 0):
        drawn = {symbol: int(draws.choice((1, 1, 1, 2, 3, *_LENGTHS))) for symbol in free}
        length = max(drawn.values())
        yield _Guess(drawn, length, number % len(ranks), "natural", number % 2 == 0, number)


def _symbols(spec: InputSpec) -> list[str]:
    """The names of a shape's free sizes; `past + sequence` has two."""
    names = []
    for axis, size in enumerate(spec.shape or ()):
        if not isinstance(size, int):
            names += _terms(_symbol(spec, axis))
    return [name for name in names if not name.isdigit()]


def _symbol(spec: InputSpec, axis: int) -> str:
    size = (spec.shape or ())[axis]
    return size if isinstance(size, str) and size else f"{spec.name}[{axis}]"


def _terms(symbol: str) -> list[str]:
    return [term.strip() for term in re.split(r"\s\+\s", symbol)]


def _is_batch(symbol: str, inputs: Sequence[_Input]) -> bool:
    """Whether a free size counts the samples: named so, or a first axis not named for time."""
    if names_batch(symbol):
        return True
    if names_time(symbol) and "[" not in symbol:
        return False
    return any(
        len(given.spec.shape or ()) > 1 and _symbol(given.spec, 0) == symbol and not given.in_sequence
        for given in inputs
        if given.spec.shape and not isinstance(given.spec.shape[0], int)
    )


def _draw(inputs: Sequence[_Input], guess: _Guess, draws: np.random.Generator) -> Sample:
    """One sample by a guess."""
    shapes = {given.spec.name: _shape(given.spec, guess) for given in inputs}
    size = sum(math.prod(shapes[given.spec.name]) * given.spec.dtype.itemsize for given in inputs)
    if size > _MOST_BYTES:
        raise CalibrationError("inputs", f"would take {size / 1e9:.1f} GB", "give samples with --calibration")
    sample: dict[str, Any] = {}
    # Token ids first: masks, positions and caches follow from them.
    for given in sorted(inputs, key=lambda given: not given.spec.name.endswith("input_ids")):
        spec = given.spec
        value = derive(spec, sample, 0) if guess.derived else None
        if value is None:
            value = _values(given, shapes[spec.name], guess, draws)
        sample[spec.name] = [value, value] if given.in_sequence else value
    return {given.spec.name: sample[given.spec.name] for given in inputs}


def _shape(spec: InputSpec, guess: _Guess) -> tuple[int, ...]:
    if spec.shape is None:
        rank = _RANKS[guess.ranks]
        return (1, *[guess.length] * (rank - 1)) if rank else ()
    return tuple(
        size
        if isinstance(size, int)
        else sum(int(term) if term.isdigit() else guess.sizes[term] for term in _terms(_symbol(spec, axis)))
        for axis, size in enumerate(spec.shape)
    )


def _values(given: _Input, shape: tuple[int, ...], guess: _Guess, draws: np.random.Generator) -> Any:
    dtype, name = given.spec.dtype, given.spec.name.lower()
    if dtype.kind == "O":
        return draws.choice(np.array(["a", "word", "more words"], object), shape)
    if "mask" in name or guess.style == "ones":
        return np.ones(shape, dtype)
    if guess.style == "zeros":
        return np.zeros(shape, dtype)
    if dtype.kind == "b":
        return np.asarray(draws.random(shape) < 0.5)
    if np.issubdtype(dtype, np.integer):
        return _integers(given, shape, guess, draws).astype(dtype)
    if not is_float(dtype):
        return np.zeros(shape, dtype)
    is_image = len(shape) in (4, 5) and (shape[1] in (1, 3, 4) or shape[-1] in (1, 3, 4))
    if guess.style == "unit" or is_image or math.prod(shape) == 1:
        return np.asarray(draws.random(shape)).astype(dtype)
    return np.asarray(draws.standard_normal(shape) * (0.1 if guess.style == "small" else 1)).astype(dtype)


def _integers(given: _Input, shape: tuple[int, ...], guess: _Guess, draws: np.random.Generator) -> Any:
    use, name = given.use, given.spec.name.lower()
    limits = np.iinfo(given.spec.dtype)
    most = min(int(limits.max), 2**31 - 1 if use.rows is None else use.rows - 1)
    if guess.style == "length" or use.is_length or re.search(r"length|_len(s)?$", name):
        return np.full(shape, min(guess.length, most))
    if "position" in name and shape:
        return np.broadcast_to(np.arange(shape[-1]) % (most + 1), shape)
    if use.rows is not None:
        return draws.integers(0, most, shape, endpoint=True)
    if use.compared:
        return np.full(shape, min(max(use.compared[guess.choice % len(use.compared)], limits.min), limits.max))
    if use.is_size:
        return np.ones(shape, np.int64) if len(shape) != 1 else np.array([1] * (shape[0] - 1) + [-1])[: shape[0]]
    if given.spec.dtype == np.uint8:
        return draws.integers(0, 255, shape, endpoint=True)
    return draws.integers(0, min(8, most), shape)
