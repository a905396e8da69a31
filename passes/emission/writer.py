"""What the writers of all dialects share: nodes around a site's, and a layer as one operator along the last axis."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import onnx_ir as ir
import torch

from qxcompiler.dialects.reading import WEIGHT
from qxcompiler.formats import Scheme
from qxcompiler.graph import Site, Weight
from qxcompiler.graph.nodes import replace_value
from qxcompiler.packing import PackedWeight
from qxcompiler.passes.rewriting import Additions, bias_input
from qxcompiler.runtime_ops.operators import SCHEME

__all__ = ["BLOCK", "GROUP", "ROLE", "SiteNodes", "Writer"]

# metadata of the node that computes with a quantized weight, for those who read a compiled model
ROLE = "qxc.role"
BLOCK = "qxc.block"

# in memory, on the packed `MatMul` nodes of this compilation: equal for those that one operator can compute
GROUP = "qxc.group"


class Writer(ABC):
    """Writes sites in one dialect.

    Args:
        model: the model that they are in.
        schemes: the scheme of each site to replace.
        weights: the packed weight behind each of them.
        additions: where new nodes and constants come from.
    """

    def __init__(
        self,
        model: ir.Model,
        schemes: Mapping[Site, Scheme],
        weights: Mapping[Weight, PackedWeight],
        additions: Additions,
    ) -> None:
        self.model, self.schemes, self.weights, self.additions = model, schemes, weights, additions

    @abstractmethod
    def replace(self, site: Site, scheme: Scheme) -> None:
        """Let a site compute with its quantized weight. The last site of the graph comes first."""

    def finish(self) -> None:
        """Add to the model what the new nodes need."""
        return


class SiteNodes:
    """Nodes that take the place of one site's node, or stand before it."""

    def __init__(self, site: Site, scheme: Scheme, additions: Additions) -> None:
        self.site, self.scheme, self.additions = site, scheme, additions
        self.place = site.node

    def node(self, operator: str, inputs: list[ir.Value], domain: str = "", **attributes: object) -> ir.Value:
        """Insert a node at `place`, which is before the site's, and return its output."""
        name = f"{self.site.name}.{operator}"
        node = self.additions.node(operator, inputs, attributes, domain=domain, name=name)
        assert self.place.graph is not None
        self.place.graph.insert_before(self.place, node)
        return node.outputs[0]

    def cast(self, value: ir.Value, source: ir.DataType, to: ir.DataType) -> ir.Value:
        """A value as another type."""
        return value if source == to else self.node("Cast", [value], to=int(to))

    def transpose(self, value: ir.Value, permutation: list[int] | None) -> ir.Value:
        """A value with its axes in another order."""
        return value if permutation is None else self.node("Transpose", [value], perm=permutation)

    def describe(self, node: ir.Node | None) -> ir.Node:
        """Note at the node that computes with the weight what it is."""
        assert node is not None
        node.metadata_props[ROLE] = self.site.role
        node.metadata_props[SCHEME] = str(self.scheme)
        if self.site.block is not None:
            node.metadata_props[BLOCK] = str(self.site.block)
        return node

    def describe_weight(self, node: ir.Node | None) -> ir.Node:
        """The same, of an operator that has no attributes for it."""
        found = self.describe(node)
        found.metadata_props[WEIGHT] = f"{self.site.out_features}x{self.site.in_features}"
        return found

    def finish(self, result: ir.Value, named: ir.Node | None = None) -> None:
        """Let everything that read the site's node read `result`, under the old name, and remove the node.

        The node takes its name that gives the result, or the one that is named.
        """
        node = self.site.node
        old = node.outputs[0]
        assert node.graph is not None
        replace_value(old, result)
        heir = named or result.producer()
        assert heir is not None
        heir.name = node.name
        node.graph.remove(node, safe=True)

    def product(self, X: ir.Value, bias: ir.Value | None) -> ir.Value:
        """Insert the operator that multiplies along the last axis, for `replace_linear`."""
        raise NotImplementedError

    def replace_linear(self, dtype: ir.DataType, *, takes_bias: bool) -> None:
        """Put one operator in the place of a `MatMul`, `Gemm` or 1x1 `Conv`, and around it what else that did.

        Args:
            dtype: the type that the operator computes in; what comes after it is computed in float32.
            takes_bias: whether the operator adds a constant along the output features.
        """
        site = self.site
        there, back = _feature_permutations(site)
        bias = self.fused_bias() if takes_bias else None
        Y = self.product(self.transpose(self.cast(site.input, site.operand_dtype, dtype), there), bias)
        if site.alpha != 1 or (site.bias is not None and bias is None):
            Y, dtype = self.cast(Y, dtype, ir.DataType.FLOAT), ir.DataType.FLOAT
        if site.alpha != 1:
            Y = self.node("Mul", [Y, self._scalar(site.alpha)])
        if site.bias is not None and bias is None:
            added = self.cast(site.bias, site.operand_dtype, ir.DataType.FLOAT)
            if site.beta != 1:
                added = self.node("Mul", [added, self._scalar(site.beta)])
            Y = self.node("Add", [Y, added])
        self.finish(self.cast(self.transpose(Y, back), dtype, site.operand_dtype))

    def fused_bias(self) -> ir.Value | None:
        """The bias as an operator's input, where it is constant and nothing comes between."""
        site = self.site
        if site.bias is None or site.alpha != 1:
            return None
        return bias_input(site.bias, site.out_features, self.additions, site.beta)

    def _scalar(self, number: float) -> ir.Value:
        return self.additions.shared(("scalar", number), f"qxc.scalar.{number!r}", torch.tensor(number))


def _feature_permutations(site: Site) -> tuple[list[int] | None, list[int] | None]:
    """How to bring the feature axis to the end and back, or None where it is there."""
    if site.activation_axis == -1:
        return None, None
    # the input of a `Conv` has its weight's rank, known or not; `find_sites` takes no other of unknown rank
    shape = site.input.shape
    axes = list(range(len(site.operand_shape) if shape is None else shape.rank()))
    features = axes.pop(site.activation_axis)
    there = [*axes, features]
    return there, [there.index(axis) for axis in range(len(there))]
