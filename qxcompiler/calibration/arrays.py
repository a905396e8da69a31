"""Named arrays of samples, from a `.npz` file or from Python, become the inputs of single runs.

An array holds its samples along the input's batch axis, or whole inputs along a first axis of its own:

| input | array | one run takes |
|---|---|---|
| `[batch, 3, 224, 224]` | `[60, 3, 224, 224]` | a row: 60 runs |
| `[8, 16]`, a fixed batch | `[50, 16]` | 8 rows: 6 runs, two rows are left out |
| `[time, batch, 80]` | `[100, 60, 80]` | a column: 60 runs |
| `[]`, `[80]`, `[16, 80]`: no batch axis | `[60]`, `[60, 80]`, `[60, 16, 80]` | an element of the first axis: 60 runs |
| `[batch, 16]` | `[60, 8, 16]` | an element of the first axis: 60 runs |
| `[4, 2]`, of fixed size | `[4, 2]` | the whole array, in every run |

The batch axis is the one named for it; else the first, unless that is named for time and the second is free. Where
other inputs name their batch, an input of free size without that name has none, and every run takes the whole array.
"""

from __future__ import annotations

__all__ = ["batch_axis", "fit", "is_float", "names_batch", "names_time", "read_npz", "split"]

import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import ml_dtypes  # noqa: F401  (teaches numpy the names bfloat16 and float8)
import numpy as np
import numpy.typing as npt

from qxcompiler.errors import CalibrationError
from qxcompiler_runtime.inputs import InputSpec

# What a file may unpack to, in memory.
_MOST_BYTES = 2 << 30


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a type holds real numbers; to numpy the types of `ml_dtypes` are of no kind."""
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


def names_batch(symbol: object) -> bool:
    """Whether the name of a free dimension says that it counts the samples."""
    return isinstance(symbol, str) and re.search(r"batch|^[bn]$", symbol, re.IGNORECASE) is not None


def names_time(symbol: object) -> bool:
    """Whether the name of a free dimension says that it counts the steps of a sequence."""
    pattern = r"seq|len|time|token|frame|step|past|^[tsl]$"
    return isinstance(symbol, str) and re.search(pattern, symbol, re.IGNORECASE) is not None


def batch_axis(spec: InputSpec, inputs: Sequence[InputSpec]) -> int | None:
    """The axis along which an input holds its samples; None if it has none.

    Args:
        spec: the input.
        inputs: all inputs of the model.
    """
    shape = spec.shape
    if shape is None:
        return 0
    named = [axis for axis, size in enumerate(shape) if names_batch(size)]
    if named or not shape:
        return named[0] if named else None
    if isinstance(shape[0], int):
        return 0
    if any(names_batch(size) for other in inputs for size in other.shape or ()):
        return None
    if names_time(shape[0]):
        return 1 if len(shape) > 1 and not isinstance(shape[1], int) and not names_time(shape[1]) else None
    return 0


def fit(name: str, array: npt.NDArray[Any], spec: InputSpec, subject: object) -> npt.NDArray[Any]:
    """An array in the type that an input takes, with the same values as far as that type can say.

    Args:
        name: the array's.
        array: what was given.
        spec: the input.
        subject: what an error is about.

    Raises:
        CalibrationError: it is of another kind, or holds NaN, infinity or numbers out of range.
    """
    dtype = spec.dtype
    if dtype.kind == "O":
        if array.dtype.kind != "U" and not (
            array.dtype.kind == "O" and all(isinstance(text, str) for text in array.flat)
        ):
            raise CalibrationError(subject, f"{name} has type {array.dtype}", f"the model takes {spec}")
        return array.astype(object)
    if is_float(dtype) and is_float(array.dtype):
        with np.errstate(over="ignore"):
            cast = array.astype(dtype)
        wide = cast.astype(np.float64, copy=False)
        if not np.isfinite(wide).all():
            if not np.isfinite(array.astype(np.float64, copy=False)).all():
                raise CalibrationError(subject, f"{name} holds NaN or infinity", "give finite values")
            raise CalibrationError(subject, f"{name} holds numbers too large for {dtype}", "give smaller values")
        return cast
    if dtype.kind in "iu" and array.dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
            raise CalibrationError(
                subject,
                f"{name} holds numbers from {array.min()} to {array.max()}, too large for {dtype}",
                f"give numbers from {limits.min} to {limits.max}",
            )
        return array.astype(dtype)
    if array.dtype != dtype:
        raise CalibrationError(subject, f"{name} has type {array.dtype}", f"the model takes {spec}")
    return array


def split(
    arrays: Mapping[str, npt.NDArray[Any]], inputs: Sequence[InputSpec], samples: int, subject: object
) -> list[dict[str, npt.NDArray[Any]]]:
    """Cut arrays into the inputs of up to `samples` runs, spaced evenly over them.

    Args:
        arrays: those of a file, by input; see the top of this module for their shapes.
        inputs: all inputs of the model.
        samples: how many runs at most.
        subject: what an error is about.

    Raises:
        CalibrationError: an array does not fit its input, or the arrays do not fit each other.
    """
    by_name = {spec.name: spec for spec in inputs}
    wanted = "; ".join(map(str, inputs))
    if unknown := [name for name in arrays if name not in by_name]:
        raise CalibrationError(subject, f"the model has no input {unknown[0]}", f"give arrays for {wanted}")
    cuts = {
        name: _Cut(fit(name, array, by_name[name], subject), by_name[name], batch_axis(by_name[name], inputs), subject)
        for name, array in arrays.items()
    }
    batch = max((cut.fixed for cut in cuts.values()), default=1)
    counts = {name: cut.runs(batch) for name, cut in cuts.items()}
    numbers = {name: count for name, count in counts.items() if count is not None}
    if not cuts or 0 in numbers.values():
        raise CalibrationError(subject, "holds no samples", f"give arrays for {wanted}")
    if len(set(numbers.values())) > 1:
        raise CalibrationError(subject, f"arrays differ in their number of samples {numbers}", "give as many in each")
    count = next(iter(numbers.values()), 1)
    chosen = min(count, samples)
    return [{name: cut.take(number * count // chosen, batch) for name, cut in cuts.items()} for number in range(chosen)]


class _Cut:
    """How one array is cut into runs.

    Attributes:
        fixed: how many rows the input's fixed batch takes; 1 where it is free or there is none.
    """

    def __init__(self, array: npt.NDArray[Any], spec: InputSpec, axis: int | None, subject: object) -> None:
        self._array = array
        self._axis: int | None = None
        self._whole = False
        self.fixed = 1
        shape, mine = array.shape, spec.shape
        size = mine[axis] if mine is not None and axis is not None else None
        self._own = size if isinstance(size, int) else None
        stacked = mine is not None and len(shape) == len(mine) + 1 and spec.accepts(shape[1:])
        if stacked:
            return  # whole inputs along an axis of their own
        if array.ndim and axis is not None and axis < array.ndim:
            self._axis = axis
            self._whole = mine == shape
            fits = spec.accepts((*shape[:axis], self._own or 1, *shape[axis + 1 :]))
        else:
            self._whole = fits = spec.accepts(shape)
        if not fits:
            raise CalibrationError(
                subject,
                f"{spec.name} has shape {list(shape)}",
                f"the model takes {spec}, with the samples along its batch axis or along a first axis of their own",
            )
        if not self._whole:
            self.fixed = self._own or 1

    def runs(self, batch: int) -> int | None:
        """How many runs the array is enough for; None if for any number."""
        if self._whole:
            return None
        if self._axis is None:
            return len(self._array)
        return int(self._array.shape[self._axis]) // (self._own or batch)

    def take(self, number: int, batch: int) -> npt.NDArray[Any]:
        """The input of one run."""
        if self._whole:
            return self._array
        if self._axis is None:
            return np.ascontiguousarray(self._array[number]).reshape(self._array.shape[1:])
        rows = self._own or batch
        part = np.take(self._array, range(number * rows, (number + 1) * rows), axis=self._axis)
        return np.ascontiguousarray(part)


def read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a `.npz` file; their sizes are checked before memory is taken for them.

    Raises:
        CalibrationError: the file cannot be read, is no archive of plain arrays, or is too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(_array_bytes(archive.open(member), member) for member in archive.infolist())
        if size > _MOST_BYTES:
            raise CalibrationError(
                path,
                f"unpacks to {size / 1e9:.1f} GB, more than {_MOST_BYTES / 1e9:.1f} GB",
                "give fewer samples, or feed qxcompiler.compile from Python",
            )
        with np.load(path, allow_pickle=False) as loaded:
            return {name: loaded[name] for name in loaded.files}
    except CalibrationError:
        raise
    except OSError as error:
        raise CalibrationError(
            path, f"cannot be read ({error.strerror or error})", "give a readable .npz file"
        ) from error
    except Exception as error:  # whatever the readers stumble over in a damaged file
        raise CalibrationError(path, f"not an archive of plain arrays ({error})", "save it with numpy.savez") from error


def _array_bytes(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """The size of an array in an archive, by its header, which has to agree with the archive's own."""
    with file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{member.filename} is of version {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size != member.file_size - file.tell():
            raise ValueError(f"{member.filename} claims {size} bytes and has {member.file_size - file.tell()}")
    return size
