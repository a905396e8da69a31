"""Read a model file, and write one.

A model is untrusted input: every tensor's size and place is checked before any of its data is touched, and
external data never leads out of the model's folder.
"""

from __future__ import annotations

__all__ = ["first_cause", "load_model", "model_files", "save_model"]

import hashlib
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from qxcompiler.errors import ModelError, OutputError

EXTERNAL_FROM_BYTES = 1024
# A cache line and an AVX-512 register for every tensor, a page for those onnxruntime maps into memory.
ALIGNMENT, PAGE, PAGE_FROM_BYTES = 64, 4096, 1 << 20


def load_model(path: str | os.PathLike[str]) -> ir.Model:
    """Read an ONNX file; its external data stays on disk and is mapped into memory when a tensor is used.

    Args:
        path: the `.onnx` file. External data is looked for in its folder and nowhere else.

    Raises:
        ModelError: the file is missing, is no ONNX model, is damaged or empty; or a tensor's data is missing,
            outside the model's folder, or not of the size that the tensor's shape and type say.
    """
    path = Path(path)
    proto = _read_proto(path)
    if not proto.graph.node:
        raise ModelError(path, "the model's graph is empty", "give a model that computes something")
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as error:  # whatever the reader stumbles over in a damaged file
        raise ModelError(path, f"damaged ONNX model ({first_cause(error)})", "export the model again") from error
    folder = path.absolute().parent
    for tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            tensor.base_dir = folder
        _check_tensor(path, folder, tensor)
    model.meta["path"] = path  # for messages
    return model


def model_files(path: str | os.PathLike[str], model: ir.Model) -> list[Path]:
    """The files that a model just loaded from `path` consists of: the model's own, then its external data."""
    data = {Path(tensor.path) for tensor in _tensors(model) if isinstance(tensor, ir.ExternalTensor)}
    return [Path(path), *sorted(data)]


def save_model(model: ir.Model, folder: str | os.PathLike[str], name: str = "model.onnx") -> None:
    """Write a normalized model to `<folder>/<name>` and its tensors from 1 KiB on to `<name>.<digest>.data` beside it.

    The data file is named by its content, so that a model never meets the data of another that is written over it.
    Equal models give equal bytes. Every tensor in the data file starts on a multiple of 64 bytes, those from
    1 MiB on a page, so that a runtime can use them in place. The model itself is left as it was.

    Raises:
        OutputError: the files cannot be written.
    """
    folder = Path(folder)
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    originals = [value.const_value for value in values]
    data_path = folder / f"{name}.data"  # until its content is known
    places: list[tuple[ir.Value, int]] = []
    try:
        with data_path.open("wb") as file:
            for value in values:
                tensor = value.const_value
                if tensor is None or tensor.dtype == ir.DataType.STRING:
                    continue
                if tensor.nbytes < EXTERNAL_FROM_BYTES:
                    if isinstance(tensor, ir.ExternalTensor):
                        (value.const_value,) = ir.external_data.convert_tensors_from_external([tensor])
                    continue
                boundary = PAGE if tensor.nbytes >= PAGE_FROM_BYTES else ALIGNMENT
                file.write(bytes(-file.tell() % boundary))
                offset = file.tell()
                if isinstance(tensor, ir.ExternalTensor):
                    tensor.tofile(file)  # from file to file, not through memory
                else:
                    file.write(tensor.tobytes())
                places.append((value, offset))
        if places:
            with data_path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
            data_path = data_path.rename(folder / f"{name}.{digest}.data")
        else:
            data_path.unlink()
        for value, offset in places:
            tensor = value.const_value
            assert tensor is not None
            value.const_value = ir.ExternalTensor(
                data_path.name,
                offset,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
                base_dir=folder,
            )
        (folder / name).write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    except OSError as error:
        raise OutputError(
            error.filename or data_path,
            f"cannot be written ({error.strerror or error})",
            "free the place or choose another",
        ) from error
    finally:
        for value, tensor in zip(values, originals, strict=True):
            value.const_value = tensor


def _read_proto(path: Path) -> onnx.ModelProto:
    try:
        data = path.read_bytes()
    except IsADirectoryError as error:
        raise ModelError(path, "is a folder", "give the path of the .onnx file in it") from error
    except FileNotFoundError as error:
        raise ModelError(path, "no such file", "check the path") from error
    except OSError as error:
        raise ModelError(path, f"cannot be read ({error.strerror})", "check the file") from error
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        # Every ONNX writer begins with field 1, the IR version.
        if data[:1] == b"\x08":
            raise ModelError(path, "the ONNX file is cut off or damaged", "copy or export it again") from error
        raise ModelError(path, "not an ONNX file", "export the model to ONNX first") from error
    if not proto.HasField("graph"):
        raise ModelError(path, "not an ONNX file, it holds no graph", "export the model to ONNX first")
    if proto.graph.sparse_initializer:
        raise ModelError(path, "sparse initializers are not supported", "export the model with dense weights")
    return proto


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    functions = [function.graph for function in model.functions.values()]
    graphs = [*model.graphs(), *functions, *(inner for graph in functions for inner in graph.subgraphs())]
    for graph in graphs:
        yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.as_tensor()
                elif attribute.type == ir.AttributeType.TENSORS:
                    yield from attribute.as_tensors()


def _check_tensor(path: Path, folder: Path, tensor: ir.TensorProtocol) -> None:
    """Compare a tensor's size with its data's and keep external data in `folder`; no data is read."""
    shape = tensor.shape.numpy()
    if any(dim < 0 for dim in shape):
        raise ModelError(path, f"tensor '{tensor.name}' has a negative dimension {shape}", "export the model again")
    if tensor.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return
    expected = math.ceil(math.prod(shape) * tensor.dtype.bitwidth / 8)
    if isinstance(tensor, ir.ExternalTensor):
        _check_external(path, folder, tensor, expected)
        return
    if isinstance(tensor.raw, onnx.TensorProto) and tensor.raw.HasField("raw_data"):
        found = len(tensor.raw.raw_data)
        if found != expected:
            raise ModelError(
                path,
                f"tensor '{tensor.name}' {shape} needs {expected} bytes and has {found}",
                "export the model again",
            )


def _check_external(path: Path, folder: Path, tensor: ir.ExternalTensor, expected: int) -> None:
    name, location = tensor.name, os.fspath(tensor.location)
    keep_inside = "put the model and its data file into one folder, as plain files"
    # Both the path as written and where its links lead must lie inside.
    written, real = Path(os.path.normpath(folder / location)), Path(os.path.realpath(folder / location))
    if Path(location).is_absolute() or not written.is_relative_to(folder) or not location:
        raise ModelError(path, f"external data '{location}' of '{name}' is outside its folder", keep_inside)
    if not real.is_relative_to(os.path.realpath(folder)):
        raise ModelError(path, f"external data '{location}' of '{name}' leads out of its folder", keep_inside)
    try:
        status = real.stat()
    except OSError as error:
        raise ModelError(
            path, f"external data file '{location}' of '{name}' is missing ({error.strerror})", keep_inside
        ) from error
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:  # a hard link can lead anywhere
        raise ModelError(path, f"external data '{location}' of '{name}' is not a plain file", keep_inside)
    offset, length = tensor.offset or 0, expected if tensor.length is None else tensor.length
    if length != expected or offset < 0:
        raise ModelError(
            path,
            f"external tensor '{name}' needs {expected} bytes and claims {length} at offset {offset}",
            "export the model again",
        )
    if offset + expected > status.st_size:
        raise ModelError(
            path,
            f"external data file '{location}' is too short ({status.st_size} bytes) for '{name}'",
            "copy the data file again, it is cut off",
        )


def first_cause(error: BaseException) -> str:
    """The first cause, in one line short enough for a message."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
