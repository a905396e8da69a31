"""Read a model file, and write one.

A model is untrusted input: every tensor's size and place is checked before any of its data is touched, and
external data never leads out of the model's folder.
"""

from __future__ import annotations

__all__ = ["first_cause", "load_model", "model_files", "save_model"]

import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from qxcompiler.errors import ModelError, OutputError
from qxcompiler.graph.checks import check_graphs, check_proto
from qxcompiler.graph.external_data import FileTensor, locate, remember

EXTERNAL_FROM_BYTES = 1024
# A cache line and an AVX-512 register for every tensor, a page for those onnxruntime maps into memory.
ALIGNMENT, PAGE, PAGE_FROM_BYTES = 64, 4096, 1 << 20
LARGEST_PROTO = (1 << 31) - 1  # what a protobuf message may take


def load_model(source: str | os.PathLike[str] | onnx.ModelProto) -> ir.Model:
    """Read a model; its external data stays on disk and is read when a tensor is used.

    Args:
        source: the `.onnx` file, or a model in memory, which is copied. External data is looked for in the file's
            folder, as `qxcompiler.graph.external_data.locate` says; a model in memory must have its data in it.

    Raises:
        ModelError: the file is missing, is no ONNX model, is damaged or empty; or a tensor's data is missing,
            outside the model's folder, or not of the size that the tensor's shape and type say.
    """
    path = None if isinstance(source, onnx.ModelProto) else Path(source)
    subject: object = path or "the model in memory"
    if isinstance(source, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
    else:
        proto = _read_proto(Path(source))
    if not proto.graph.node or not proto.graph.output:
        missing = "output" if proto.graph.node else "node"
        raise ModelError(subject, f"the model's graph has no {missing}", "give a model that computes something")
    serde_log = logging.getLogger(ir.serde.__name__)
    level = serde_log.level
    serde_log.setLevel(logging.ERROR)  # what it would warn of is an error of ours
    try:
        check_proto(proto)
        model = ir.serde.deserialize_model(proto)
        check_graphs(model)
    except Exception as error:  # whatever the reader stumbles over in a damaged file
        raise ModelError(subject, f"damaged ONNX model ({first_cause(error)})", "export the model again") from error
    finally:
        serde_log.setLevel(level)
    files = [] if path is None else [path]
    files += sorted(_open_external_data(path, model))
    remember(model, files)
    if path is not None:
        model.meta["path"] = path  # for messages, and what lies beside it
    return model


def model_files(path: str | os.PathLike[str], model: ir.Model) -> list[Path]:
    """The files that a model just loaded from `path` consists of: the model's own, then its external data."""
    data = {value.const_value.file for value in _initializers(model) if isinstance(value.const_value, FileTensor)}
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
    for node in model.graph.all_nodes():  # a `Constant` that a graph gives out
        for attribute in list(node.attributes.values()):
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, FileTensor):
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, ir.tensor(attribute.value.numpy()))
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
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ModelError(path, "is a folder", "give the path of the .onnx file in it")
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(path, "is not a plain file", "copy the model into a file")
        if status.st_size > LARGEST_PROTO:
            raise ModelError(path, "is larger than 2 GiB", "keep the model's weights in a file of external data")
        data = path.read_bytes()
    except (FileNotFoundError, ValueError) as error:  # or a path with a NUL
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
    return proto


def _open_external_data(path: Path | None, model: ir.Model) -> set[Path]:
    """Put a `FileTensor` in the place of every external tensor; the files that hold their data."""
    files: set[Path] = set()

    def opened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if not isinstance(tensor, ir.ExternalTensor):
            return tensor
        if path is None:
            problem = f"'{tensor.name}' has its data in a file"
            raise ModelError("the model in memory", problem, "load the data into it, or give the model's file")
        tensor.base_dir = path.absolute().parent
        file = FileTensor(tensor, locate(path, tensor))
        files.add(file.file)
        return file

    for value in _initializers(model):
        if value.const_value is not None:
            value.const_value = opened(value.const_value)
    functions = model.functions.values()
    for node in chain(model.graph.all_nodes(), *(function.all_nodes() for function in functions)):
        for name, attribute in list(node.attributes.items()):
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.TENSOR:
                node.attributes[name] = ir.AttrTensor(name, opened(attribute.as_tensor()))
            elif attribute.type == ir.AttributeType.TENSORS:
                node.attributes[name] = ir.AttrTensors(name, [opened(tensor) for tensor in attribute.as_tensors()])
    return files


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    outer = [function.graph for function in model.functions.values()]
    for graph in (*model.graphs(), *outer, *(body for function in outer for body in function.subgraphs())):
        yield from graph.initializers.values()


def first_cause(error: BaseException) -> str:
    """The first cause, in one line short enough for a message."""
    while (cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = cause
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
