"""The operators' library, and sessions that have it."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import onnxruntime

from qxcompiler_runtime.errors import ModelError, QxcError

__all__ = ["ops_library", "session"]

_LIBRARY = "libqxc_ops.so"


def ops_library() -> Path:
    """The library to give to `SessionOptions.register_custom_ops_library`.

    Raises:
        QxcError: it was not built.
    """
    library = Path(__file__).parent / _LIBRARY
    if library.exists():
        return library
    try:  # a checkout's sources, with the library that an installation built
        installed = Path(str(metadata.distribution("qxcompiler-runtime").locate_file(f"qxcompiler_runtime/{_LIBRARY}")))
    except metadata.PackageNotFoundError:
        installed = library
    if not installed.exists():
        raise QxcError(library, "the operators are not built", "run `make dev`, or install qxcompiler-runtime with pip")
    return installed


def session(
    path: str | Path | bytes,
    *,
    threads: int | None = None,
    optimize: bool = True,
    frugal: bool = False,
    library: bool = True,
    folder: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Open a model on the CPU, with the packed operators at hand.

    Args:
        path: an ONNX file, or a whole model as bytes.
        threads: how many threads an operator may use; None leaves it to ONNX Runtime.
        optimize: let ONNX Runtime rewrite the graph.
        frugal: leave weights where they are, in the model's file, instead of copies laid out for speed, and keep no
            memory from run to run.
        library: False leaves our library out, so that ONNX Runtime computes the packed operators by their definition.
        folder: where the external data of a model given as bytes lies.

    Raises:
        ModelError: there is no such file, or ONNX Runtime refuses the model.
        QxcError: the operators are not built.
    """
    if not isinstance(path, bytes) and not Path(path).is_file():
        raise ModelError(path, "no such file", "give an ONNX file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, and need not be printed besides
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if frugal:
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.disable_prepacking", "1")
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if library:
        options.register_custom_ops_library(str(ops_library()))
    model, subject = (path, "the model") if isinstance(path, bytes) else (str(path), path)
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ModelError(
            subject, f"onnxruntime cannot run it ({error})", "check that it is a whole ONNX model"
        ) from error
