"""The export: from a Hugging Face model to ONNX."""

from __future__ import annotations

__all__ = ["export"]

from qxcompiler.models.export import export
