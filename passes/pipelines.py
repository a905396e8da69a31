"""Which passes run when, in their order: the one place that lists them."""

from __future__ import annotations

import onnx_ir as ir

from qxcompiler.passes.fuse_bias import FuseBias
from qxcompiler.passes.fuse_shared_input import FuseSharedInput
from qxcompiler.passes.fuse_swiglu import FuseSwiGlu

__all__ = ["after_packing"]


def after_packing() -> ir.passes.Sequential:
    """What makes fewer and larger operators of those that `PackSites` has put in the sites' places."""
    return ir.passes.Sequential(FuseBias(), FuseSwiGlu(), FuseSharedInput())
