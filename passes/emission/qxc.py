"""The dialect `qxc`: packed operators, with their function bodies."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch

from qxcompiler.errors import ModelError
from qxcompiler.formats import Scheme, block_size
from qxcompiler.graph import Site, Weight, by_operator
from qxcompiler.packing import LAYOUT, PackedWeight
from qxcompiler.passes.emission.writer import GROUP, SiteNodes, Writer
from qxcompiler.passes.rewriting import Additions, add_functions
from qxcompiler.runtime_ops.operators import (
    DOMAIN,
    HADAMARD,
    MINIMUM_OPSET,
    OPERATORS,
    function_for,
    operator_name,
)

__all__ = ["QxcWriter"]

_NO_BIAS = "qxc.no_bias"


class QxcWriter(Writer):
    """Packed operators, such as `MatMulInt3`.

    - They compute in float32 along the last axis: other types are cast, other axes transposed, before and after.
    - What weights with rotated inputs read goes through a `Hadamard`, one for all that read the same value.
    - A constant bias along the output features goes into the operator; any other stays an `Add`.
    - The function body of each operator used comes into the model, so that it runs without the library.
    """

    def __init__(
        self,
        model: ir.Model,
        schemes: Mapping[Site, Scheme],
        weights: Mapping[Weight, PackedWeight],
        additions: Additions,
    ) -> None:
        super().__init__(model, schemes, weights, additions)
        _check_functions(model)
        self._tensors = {
            weight: [
                additions.shared((weight, name), f"{weight.name}.{name}", tensor)
                for name, tensor in packed.tensors.items()
            ]
            for weight, packed in weights.items()
        }
        self._group_of = {site: index for index, group in enumerate(by_operator(schemes)) for site in group}
        self._operators: set[str] = set()
        self._rotations = _Rotations(additions)

    def replace(self, site: Site, scheme: Scheme) -> None:
        """Put a packed operator in the place of the site's node."""
        operator = operator_name(scheme.format, "Gather" if site.kind == "embedding" else "MatMul")
        self._operators.add(operator)
        nodes = _PackedNodes(
            site, scheme, self.additions, operator, self.weights[site.weight], self._tensors[site.weight],
            self._group_of.get(site), self._rotations,
        )  # fmt: skip
        if site.kind == "embedding":
            nodes.replace_gather()
        else:
            nodes.replace()

    def finish(self) -> None:
        """Import the domain, and add the function bodies."""
        self.model.opset_imports[DOMAIN] = 1
        add_functions(self.model, self._operators | ({HADAMARD} if self._rotations.any else set()))


def _check_functions(model: ir.Model) -> None:
    """See that functions called like our operators are our operators: a runtime would take one for the other."""
    for function in model.functions.values():
        if function.domain == DOMAIN and function.name in OPERATORS:
            ours = function_for(function.name, max(function.opset_imports.get("", 0), MINIMUM_OPSET))
            if function.overload or _definition(function) != _definition(ours):
                raise ModelError(
                    f"{DOMAIN}::{function.name}",
                    "the model has a function of this name that is another than this version's",
                    "compile the model that it was made from",
                )


def _definition(function: ir.Function) -> bytes:
    """The function as it is written, without nodes that nothing reads, which passes remove."""
    alone = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10, functions=[function.clone()])
    ir.passes.common.RemoveUnusedNodesPass()(alone)
    (function,) = alone.functions.values()
    function.metadata_props.clear()
    written: bytes = ir.serde.serialize_function(function).SerializeToString(deterministic=True)
    return written


class _Rotations:
    """The `Hadamard` nodes."""

    def __init__(self, additions: Additions) -> None:
        self._additions = additions
        self._nodes: dict[tuple[ir.Value, ir.Graph | ir.Function], ir.Node] = {}

    @property
    def any(self) -> bool:
        """Whether there are some."""
        return bool(self._nodes)

    def rotated(self, X: ir.Value, in_features: int, site: Site) -> ir.Value:
        """X with its last axis rotated, for a site that comes before those that asked earlier."""
        size, graph = block_size(in_features), site.node.graph
        assert graph is not None
        if size == 1:
            return X
        if (X, graph) in self._nodes:
            node = self._nodes[X, graph]
            graph.remove(node)
        else:
            name = f"{X.name}.{HADAMARD}"
            node = self._additions.node(HADAMARD, [X], {"block_size": size}, domain=DOMAIN, name=name)
            node.outputs[0].type, node.outputs[0].shape = X.type, X.shape
            self._nodes[X, graph] = node
        graph.insert_before(site.node, node)
        return node.outputs[0]


class _PackedNodes(SiteNodes):
    """A packed operator in the place of one site's node."""

    def __init__(
        self,
        site: Site,
        scheme: Scheme,
        additions: Additions,
        operator: str,
        packed: PackedWeight,
        tensors: list[ir.Value],
        group: int | None,
        rotations: _Rotations,
    ) -> None:
        super().__init__(site, scheme, additions)
        self._operator, self._packed, self._tensors = operator, packed, tensors
        self._group, self._rotations = group, rotations

    def replace_gather(self) -> None:
        rows = self._packed_node([self.site.input, *self._tensors])
        self.finish(self.cast(rows, ir.DataType.FLOAT, self.site.operand_dtype))

    def replace(self) -> None:
        site = self.site
        nothing_follows = site.alpha == 1 and (site.bias is None or self.fused_bias() is not None)
        # the operator takes float16 as it is; what is computed after it is computed in float32
        as_it_is = site.operand_dtype == ir.DataType.FLOAT16 and nothing_follows
        self.replace_linear(site.operand_dtype if as_it_is else ir.DataType.FLOAT, takes_bias=True)

    def product(self, X: ir.Value, bias: ir.Value | None) -> ir.Value:
        if self.scheme.format.rotated:
            X = self._rotations.rotated(X, self._packed.in_features, self.site)
        fused = bias if bias is not None else self.additions.shared(_NO_BIAS, _NO_BIAS, torch.zeros(1))
        return self._packed_node([X, *self._tensors, fused])

    def _packed_node(self, inputs: list[ir.Value]) -> ir.Value:
        activation = {} if self.scheme.activation is None else {"activation": self.scheme.activation}
        output = self.node(
            self._operator,
            inputs,
            DOMAIN,
            K=self._packed.in_features,
            N=self._packed.out_features,
            group_size=self._packed.format.group_length(self._packed.in_features),
            layout=LAYOUT,
            **activation,
        )
        self.describe(output.producer()).meta[GROUP] = self._group
        return output
