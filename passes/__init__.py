"""Graph rewrites on `onnx_ir`: one pass, one module."""

from __future__ import annotations

from qxcompiler.passes.fuse_bias import FuseBias
from qxcompiler.passes.fuse_shared_input import FuseSharedInput
from qxcompiler.passes.fuse_swiglu import FuseSwiGlu
from qxcompiler.passes.pack_sites import PackSites
from qxcompiler.passes.smooth import Smooth

__all__ = ["FuseBias", "FuseSharedInput", "FuseSwiGlu", "PackSites", "Smooth"]
