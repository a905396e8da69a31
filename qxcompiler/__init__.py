"""qxcompiler: an ONNX graph-rewriting quantization compiler for edge accelerators."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qxcompiler.errors import QxcError

if TYPE_CHECKING:
    from qxcompiler.compiler import compile, compile_folder, pareto  # noqa: A004
    from qxcompiler.evaluation import evaluate
    from qxcompiler.models import export
    from qxcompiler.report import explain, inspect
    from qxcompiler_runtime import bench, generate, ops_library, session

__all__ = [
    "QxcError",
    "bench",
    "compile",
    "compile_folder",
    "evaluate",
    "explain",
    "export",
    "generate",
    "inspect",
    "ops_library",
    "pareto",
    "session",
]
__version__ = "0.1.0"

# In a checkout, the packages that an installation holds within this one lie beside it.
if not (Path(__file__).parent / "runtime_ops").exists():
    __path__.append(str(Path(__file__).parent.parent))

_HOME = {
    "bench": "qxcompiler_runtime",
    "compile": "qxcompiler.compiler",
    "compile_folder": "qxcompiler.compiler",
    "evaluate": "qxcompiler.evaluation",
    "explain": "qxcompiler.report",
    "export": "qxcompiler.models",
    "generate": "qxcompiler_runtime",
    "inspect": "qxcompiler.report",
    "ops_library": "qxcompiler_runtime",
    "pareto": "qxcompiler.compiler",
    "session": "qxcompiler_runtime",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: PyTorch takes seconds."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
