"""Tensors whose data lies in a file beside the model."""

from __future__ import annotations

__all__ = ["FileTensor", "check_unchanged", "locate", "remember"]

import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from qxcompiler.errors import ModelError

_CHUNK = 1 << 22
_KEEP_INSIDE = "put the model and its data file into one folder"
_SOURCES = "qxc.sources"


class FileTensor(ir.ExternalTensor):
    """A tensor in a file, read whenever it is asked for and never kept.

    Its file is not mapped into memory: one that shrinks while it is read would end the process.

    Args:
        tensor: where the data is.
        file: the file itself, which `locate` has found.

    Raises:
        ModelError: on reading, when the file ends too early or is gone.
    """

    def __init__(self, tensor: ir.ExternalTensor, file: Path) -> None:
        super().__init__(
            tensor.location,
            tensor.offset,
            tensor.nbytes,
            tensor.dtype,
            shape=tensor.shape,
            name=tensor.name,
            metadata_props=tensor.metadata_props,
            base_dir=tensor.base_dir,
        )
        self._file = file

    @property
    def file(self) -> Path:
        """The file that holds the data, no link."""
        return self._file

    def numpy(self) -> np.ndarray:
        """The tensor, the caller's own copy."""
        data, shape = self.tobytes(), self.shape.numpy()
        if self.dtype.bitwidth % 8:
            proto = onnx.TensorProto(data_type=int(self.dtype), dims=shape, raw_data=data)
            return ir.serde.deserialize_tensor(proto).numpy()
        return np.frombuffer(data, self.dtype.numpy().newbyteorder("<")).reshape(shape).copy()

    def __array__(self, dtype: Any = None) -> np.ndarray:
        """As numpy asks for it."""
        return self.numpy().__array__(dtype)

    def tobytes(self) -> bytes:
        """The bytes as they lie in the file."""
        with self._open() as file:
            data = file.read(self.nbytes)
        self._check_length(len(data))
        return data

    def tofile(self, file: BinaryIO) -> None:
        """Copy the bytes to another file, a piece at a time."""
        left = self.nbytes
        with self._open() as source:
            while left and (data := source.read(min(left, _CHUNK))):
                file.write(data)
                left -= len(data)
        self._check_length(self.nbytes - left)

    def release(self) -> None:
        """Nothing is kept."""

    def _open(self) -> BinaryIO:
        try:
            source = self._file.open("rb", buffering=0)
            source.seek(self.offset or 0)
        except OSError as error:
            raise ModelError(self._file, f"cannot be read ({error.strerror})", "check the file") from error
        return source

    def _check_length(self, length: int) -> None:
        if length != self.nbytes:
            raise _changed(self._file)


def locate(path: Path, tensor: ir.ExternalTensor) -> Path:
    """The file that holds a tensor's data, with its links followed; nothing is read.

    The location is a relative path that stays in the model's folder. Links may lead anywhere in that folder, and out of
    it only where the model's own file is a link as well, to the folder of what they lead to: that is how caches keep
    files by their hash (`snapshots/a1b2/model.onnx -> ../../blobs/c3d4`). So no model can name a file of its choice,
    nor can an archive with links in it. A hard link is a file like any other.

    Args:
        path: the model's file.
        tensor: one of its tensors.

    Raises:
        ModelError: the location leads elsewhere, or there is no regular file long enough for the tensor.
    """
    name, location = tensor.name, os.fspath(tensor.location)
    said = f"external data {location!r} of '{name}'"
    folder = path.absolute().parent
    if not location or "\0" in location:
        raise ModelError(path, f"{said} is outside its folder, it is no path", _KEEP_INSIDE)
    written = Path(os.path.normpath(folder / location))
    if Path(location).is_absolute() or ".." in Path(location).parts or not written.is_relative_to(folder):
        raise ModelError(path, f"{said} is outside its folder", _KEEP_INSIDE)
    file, model = Path(os.path.realpath(written)), Path(os.path.realpath(path))
    in_cache = path.is_symlink() and file.is_relative_to(model.parent)
    if not file.is_relative_to(os.path.realpath(folder)) and not in_cache:
        raise ModelError(path, f"{said} leads out of its folder", _KEEP_INSIDE)
    try:
        status = file.stat()
    except OSError as error:
        problem = f"external data file {location!r} of '{name}' is missing ({error.strerror})"
        raise ModelError(path, problem, _KEEP_INSIDE) from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(path, f"{said} is not a plain file", _KEEP_INSIDE)
    expected, offset = tensor.nbytes, tensor.offset or 0
    claimed = expected if tensor.length is None else tensor.length
    if claimed != expected or offset < 0:
        problem = f"external tensor '{name}' needs {expected} bytes and claims {claimed} at offset {offset}"
        raise ModelError(path, problem, "export the model again")
    if offset + expected > status.st_size:
        problem = f"external data file {location!r} is too short ({status.st_size} bytes) for '{name}'"
        raise ModelError(path, problem, "copy the data file again, it is cut off")
    return file


def remember(model: ir.Model, files: list[Path]) -> None:
    """Note what the files that a model was read from are like now."""
    model.meta[_SOURCES] = {file: _state(file) for file in files}


def check_unchanged(model: ir.Model) -> None:
    """See that the files that a model was loaded from are those they were then, by size and time.

    Raises:
        ModelError: one of them is another.
    """
    for file, state in model.meta.get(_SOURCES, {}).items():
        if _state(file) != state:
            raise _changed(file)


def _state(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _changed(file: Path) -> ModelError:
    return ModelError(file, "was changed while it was read", "run again when nothing writes to it")
