"""Graph rewrites on `onnx_ir`: one pass, one module."""

from __future__ import annotations

from qxcompiler.passes.pack_sites import PackSites

__all__ = ["PackSites"]
