"""What a compile has finished, in files, so that one that was killed is gone on with."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from qxcompiler.formats import Format
from qxcompiler.graph import FileTensor
from qxcompiler.packing import PackedWeight
from qxcompiler.quantizers import QuantizationResult

__all__ = ["WorkFolder", "fingerprint"]

_MANIFEST = "manifest.json"
_RESULT = "result"  # the key of a file's metadata


class WorkFolder:
    """Quantized weights, each in a file of its own as soon as it is done.

    A file appears under its name when it is whole. What is there from a compile with another fingerprint is removed.

    Args:
        folder: made if missing.
        manifest: what the results depend on, all of it, as JSON can hold it.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self._folder = folder
        text = json.dumps(manifest, indent=2, sort_keys=True)
        path = folder / _MANIFEST
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            _write(path, text.encode())

    def keep(self, name: str, result: QuantizationResult) -> QuantizationResult:
        """Write a result; returns the same with its tensors in the file.

        Raises:
            OSError: the file cannot be written.
        """
        packed = result.packed
        said = {
            "quantizer": result.quantizer,
            "error": result.error,
            "reason": result.reason,
            "skipped_tokens": result.skipped_tokens,
            "shape": [packed.out_features, packed.in_features],
        }
        path = self._path(name)
        arrays = {tensor: np.ascontiguousarray(value.numpy()) for tensor, value in packed.tensors.items()}
        _write(path, save(arrays, {_RESULT: json.dumps(said), "order": json.dumps(list(arrays))}))
        return replace(result, packed=replace(packed, tensors=_stored(path, list(arrays))))

    def find(self, name: str, fmt: Format) -> QuantizationResult | None:
        """The result kept under a name by an earlier run, if there is one.

        Args:
            name: as given to `keep`.
            fmt: the format of its codes.
        """
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata()
            said = json.loads(metadata[_RESULT])
            N, K = said.pop("shape")
            packed = PackedWeight(fmt, N, K, _stored(path, json.loads(metadata["order"])))
            return QuantizationResult(packed, **said)
        except (SafetensorError, ValueError, KeyError, TypeError):  # a machine that went down as it was written
            return None

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


def _stored(path: Path, names: Sequence[str]) -> dict[str, ir.TensorProtocol]:
    """The tensors of a safetensors file, read when they are needed.

    The file begins with its header's length, 8 bytes, and the header, JSON (safetensors, "Format").
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    tensors: dict[str, ir.TensorProtocol] = {}
    for name in names:
        start, end = header[name]["data_offsets"]
        dtype = {"U8": ir.DataType.UINT8, "I8": ir.DataType.INT8, "F16": ir.DataType.FLOAT16}[header[name]["dtype"]]
        shape = ir.Shape(header[name]["shape"])
        place = ir.ExternalTensor(
            path.name, 8 + length + start, end - start, dtype, shape=shape, name=name, base_dir=path.parent
        )
        tensors[name] = FileTensor(place, path)
    return tensors


def _write(path: Path, data: bytes) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(data)
    partial.replace(path)


def fingerprint(values: object) -> str:
    """A digest of arrays, lists and dicts of them: equal for equal numbers, types, shapes and names."""
    digest = sha256()
    _add(digest, values)
    return digest.hexdigest()


def _add(digest: Any, values: object) -> None:
    if isinstance(values, Mapping):
        for name, value in values.items():
            digest.update(f"{name!r}:".encode())
            _add(digest, value)
    elif isinstance(values, (list, tuple)):
        digest.update(f"{len(values)}[".encode())
        for value in values:
            _add(digest, value)
    else:
        array = np.asarray(values)
        digest.update(f"{array.dtype}{array.shape}".encode())
        plain = array.astype(str) if array.dtype.hasobject else array
        digest.update(np.ascontiguousarray(plain).reshape(-1).view(np.uint8))
