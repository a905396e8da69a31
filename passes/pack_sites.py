"""Replace each site's node by what computes with its quantized weight."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from qxcompiler.formats import Scheme
from qxcompiler.graph import Site, Weight
from qxcompiler.packing import PackedWeight
from qxcompiler.passes.emission import WRITERS
from qxcompiler.passes.rewriting import Additions

__all__ = ["PackSites"]


class PackSites(ir.passes.InPlacePass):
    """Replace each site's node by what computes with its quantized weight, in a dialect's operators.

    Sites that share a weight share its tensors. What nothing uses any more is removed.

    Args:
        schemes: the scheme of each site to replace.
        weights: the packed weight behind each of them.
        dialect: the name of one of `qxcompiler.dialects`, which holds the schemes.
    """

    def __init__(
        self, schemes: Mapping[Site, Scheme], weights: Mapping[Weight, PackedWeight], dialect: str = "qxc"
    ) -> None:
        super().__init__()
        self._schemes = schemes
        self._weights = weights
        self._dialect = dialect

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the model in place."""
        writer = WRITERS[self._dialect](model, self._schemes, self._weights, Additions(model))
        # the last first: a replaced node's output is another value, which later sites must not have seen yet
        for site, scheme in reversed(list(self._schemes.items())):
            writer.replace(site, scheme)
        writer.finish()
        ir.passes.common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(self._schemes))
