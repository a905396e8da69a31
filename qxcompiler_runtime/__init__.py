"""What runs models that qxcompiler compiled: the operators' library, sessions, and text that a model writes.

It needs NumPy and onnxruntime, and none of the compiler. Text also takes `tokenizers`, chats `jinja2`; the extra
`generate` installs both.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qxcompiler_runtime.errors import ModelError, QxcError, TokenizerError, UsageError

if TYPE_CHECKING:
    from qxcompiler_runtime.decoder import Decoder
    from qxcompiler_runtime.generation import Generation, generate, generate_batch
    from qxcompiler_runtime.library import ops_library, session
    from qxcompiler_runtime.model import ModelFile
    from qxcompiler_runtime.rates import Rates, bench

__all__ = [
    "Decoder",
    "Generation",
    "ModelError",
    "ModelFile",
    "QxcError",
    "Rates",
    "TokenizerError",
    "UsageError",
    "bench",
    "generate",
    "generate_batch",
    "ops_library",
    "session",
]

_HOME = {
    "Decoder": "decoder",
    "Generation": "generation",
    "ModelFile": "model",
    "Rates": "rates",
    "bench": "rates",
    "generate": "generation",
    "generate_batch": "generation",
    "ops_library": "library",
    "session": "library",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: errors take no onnxruntime."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"qxcompiler_runtime.{_HOME[name]}"), name)
