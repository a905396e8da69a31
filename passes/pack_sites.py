"""Replace each site's node by the packed operator of its format."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch

from qxcompiler.errors import ModelError
from qxcompiler.formats import Scheme, block_size
from qxcompiler.graph import Site, Weight, by_operator
from qxcompiler.graph.nodes import replace_value
from qxcompiler.packing import LAYOUT, PackedWeight
from qxcompiler.passes.rewriting import Additions, add_functions, bias_input
from qxcompiler.runtime_ops.operators import (
    DOMAIN,
    HADAMARD,
    MINIMUM_OPSET,
    OPERATORS,
    SCHEME,
    function_for,
    operator_name,
)

__all__ = ["BLOCK", "GROUP", "ROLE", "SCHEME", "PackSites"]

# metadata of a packed operator's node, for those who read a compiled model
ROLE = "qxc.role"
BLOCK = "qxc.block"

# in memory, on the packed `MatMul` nodes of this compilation: equal for those that one operator can compute
GROUP = "qxc.group"

_NO_BIAS = "qxc.no_bias"


class PackSites(ir.passes.InPlacePass):
    """Replace each site's node by the packed operator of its format.

    - `MatMul`, `Gemm` and 1x1 `Conv` become a packed `MatMul`, such as `MatMulInt3`, `Gather` a packed `Gather`; sites
      that share a weight share its packed tensors.
    - The operators compute in float32 along the last axis: other types are cast, other axes transposed, before and
      after.
    - What weights with rotated inputs read goes through a `Hadamard`, one for all that read the same value.
    - A constant bias along the output features goes into the operator; any other stays an `Add`.
    - The function body of each operator used comes into the model, so that it runs without the library.
    - What nothing uses any more is removed.

    Args:
        schemes: the scheme of each site to replace.
        weights: the packed weight behind each of them.
    """

    def __init__(self, schemes: Mapping[Site, Scheme], weights: Mapping[Weight, PackedWeight]) -> None:
        super().__init__()
        self._schemes = schemes
        self._weights = weights

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the model in place."""
        _check_functions(model)
        additions = Additions(model)
        tensors = {
            weight: [
                additions.shared((weight, name), f"{weight.name}.{name}", tensor)
                for name, tensor in packed.tensors.items()
            ]
            for weight, packed in self._weights.items()
        }
        group_of = {site: index for index, group in enumerate(by_operator(self._schemes)) for site in group}
        operators, rotations = set(), _Rotations(additions)
        # the last first: a replaced node's output is another value, which later sites must not have seen yet
        for site, scheme in reversed(list(self._schemes.items())):
            operator = operator_name(scheme.format, "Gather" if site.kind == "embedding" else "MatMul")
            operators.add(operator)
            rewriter = _SiteRewriter(site, scheme, self._weights[site.weight], additions, group_of.get(site), rotations)
            if site.kind == "embedding":
                rewriter.replace_gather(operator, tensors[site.weight])
            else:
                rewriter.replace_linear(operator, tensors[site.weight])
        model.opset_imports[DOMAIN] = 1
        add_functions(model, operators | ({HADAMARD} if rotations.any else set()))
        ir.passes.common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(self._schemes))


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


class _SiteRewriter:
    """Builds the nodes that take the place of one site's node."""

    def __init__(
        self,
        site: Site,
        scheme: Scheme,
        packed: PackedWeight,
        additions: Additions,
        group: int | None,
        rotations: _Rotations,
    ) -> None:
        self._site = site
        self._scheme = scheme
        self._packed = packed
        self._additions = additions
        self._group = group
        self._rotations = rotations

    def replace_gather(self, operator: str, tensors: list[ir.Value]) -> None:
        rows = self._packed_node(operator, [self._site.input, *tensors])
        self._finish(self._cast(rows, ir.DataType.FLOAT, self._site.operand_dtype))

    def replace_linear(self, operator: str, tensors: list[ir.Value]) -> None:
        site = self._site
        there, back = _feature_permutations(site)
        bias = None
        if site.bias is not None and site.alpha == 1:
            bias = bias_input(site.bias, site.out_features, self._additions, site.beta)
        nothing_follows = site.alpha == 1 and (site.bias is None or bias is not None)
        # the operator takes float16 as it is; what is computed after it is computed in float32
        as_it_is = site.operand_dtype == ir.DataType.FLOAT16 and nothing_follows
        dtype = site.operand_dtype if as_it_is else ir.DataType.FLOAT
        X = self._transpose(self._cast(site.input, site.operand_dtype, dtype), there)
        if self._scheme.format.rotated:
            X = self._rotations.rotated(X, self._packed.in_features, site)
        fused = bias if bias is not None else self._additions.shared(_NO_BIAS, _NO_BIAS, torch.zeros(1))
        Y = self._packed_node(operator, [X, *tensors, fused])
        if site.alpha != 1:
            Y = self._node("Mul", [Y, self._scalar(site.alpha)])
        if site.bias is not None and bias is None:
            added = self._cast(site.bias, site.operand_dtype, ir.DataType.FLOAT)
            if site.beta != 1:
                added = self._node("Mul", [added, self._scalar(site.beta)])
            Y = self._node("Add", [Y, added])
        self._finish(self._cast(self._transpose(Y, back), dtype, site.operand_dtype))

    def _scalar(self, number: float) -> ir.Value:
        return self._additions.shared(("scalar", number), f"qxc.scalar.{number!r}", torch.tensor(number))

    def _transpose(self, value: ir.Value, permutation: list[int] | None) -> ir.Value:
        return value if permutation is None else self._node("Transpose", [value], perm=permutation)

    def _cast(self, value: ir.Value, source: ir.DataType, to: ir.DataType) -> ir.Value:
        return value if source == to else self._node("Cast", [value], to=int(to))

    def _packed_node(self, operator: str, inputs: list[ir.Value]) -> ir.Value:
        activation = {} if self._scheme.activation is None else {"activation": self._scheme.activation}
        output = self._node(
            operator,
            inputs,
            DOMAIN,
            K=self._packed.in_features,
            N=self._packed.out_features,
            group_size=self._packed.format.group_length(self._packed.in_features),
            layout=LAYOUT,
            **activation,
        )
        node = output.producer()
        assert node is not None
        node.meta[GROUP] = self._group
        node.metadata_props[ROLE] = self._site.role
        node.metadata_props[SCHEME] = str(self._scheme)
        if self._site.block is not None:
            node.metadata_props[BLOCK] = str(self._site.block)
        return output

    def _node(self, operator: str, inputs: list[ir.Value], domain: str = "", **attributes: object) -> ir.Value:
        """Insert a node before the site's, and return its output."""
        name = f"{self._site.name}.{operator}"
        node = self._additions.node(operator, inputs, attributes, domain=domain, name=name)
        graph = self._site.node.graph
        assert graph is not None
        graph.insert_before(self._site.node, node)
        return node.outputs[0]

    def _finish(self, result: ir.Value) -> None:
        """Let everything that read the site's node read `result`, under the old name, and remove the node."""
        node = self._site.node
        old = node.outputs[0]
        assert node.graph is not None
        replace_value(old, result)
        producer = result.producer()
        assert producer is not None
        producer.name = node.name
        node.graph.remove(node, safe=True)


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
