"""qxcompiler: an ONNX graph-rewriting quantization compiler for edge accelerators."""

from __future__ import annotations

from qxcompiler.compiler import compile
from qxcompiler.errors import QxcError
from qxcompiler.evaluation import evaluate, generate
from qxcompiler.models import export
from qxcompiler.report import inspect
from qxcompiler.runtime_ops import ops_library, session

__all__ = ["QxcError", "compile", "evaluate", "export", "generate", "inspect", "ops_library", "session"]
__version__ = "0.1.0"
