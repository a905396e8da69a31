"""What a model consists of: the sites of an original and the packed operators of a compiled model alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from pydantic import BaseModel

from qxcompiler.cost import Estimate, predict
from qxcompiler.dialects.reading import QuantizedNode, quantized_node
from qxcompiler.errors import ModelError
from qxcompiler.graph import Site, find_sites, load_model, model_files, normalize
from qxcompiler.passes.emission.writer import BLOCK, ROLE
from qxcompiler.report.coverage import Unquantized, coverage
from qxcompiler.runtime_ops.operators import SCHEME, Operator, operator_of
from qxcompiler.targets import Target

__all__ = ["InspectedSite", "Inspection", "inspect"]


class InspectedSite(BaseModel):
    """One site.

    Attributes:
        name: of its node.
        operator: what the node is.
        role: what the layer does in its block.
        block: which transformer block; None outside them.
        in_features: K.
        out_features: N.
        format: a scheme such as `int3g128a/a16`, or the type of float weights.
        bits_per_weight: everything stored for the weight, over its number of weights.
        bytes: what the weight takes; 0 where an earlier site has the same weight.
    """

    name: str
    operator: str
    role: str
    block: int | None
    in_features: int
    out_features: int
    format: str
    bits_per_weight: float
    bytes: int


class Inspection(BaseModel):
    """A model.

    Attributes:
        opset: version of the standard operators.
        nodes: how many nodes the main graph has.
        bytes: size of the model's files.
        site_bytes: what the weights of all sites take.
        bits_per_weight: over the weights of all sites, each counted once; None without sites.
        model_bits_per_weight: over all weights of the model; None where it has none.
        others: the tensors that belong to no site, the most bytes first.
        sites: a row a site, in the order of the graph.
        predicted: what each phase costs on a target, if one was named.
    """

    opset: int
    nodes: int
    bytes: int
    site_bytes: int
    bits_per_weight: float | None
    model_bits_per_weight: float | None
    others: list[Unquantized]
    sites: list[InspectedSite]
    predicted: list[Estimate]


def inspect(
    path: str | Path, target: Target | None = None, *, context: int = 512, sizes: Mapping[str, int] | None = None
) -> Inspection:
    """List the sites of a model, original or compiled, and predict what it costs.

    Args:
        path: an ONNX file.
        target: for which costs are predicted.
        context: tokens before the one that is decoded, or in a prompt or an input.
        sizes: free sizes of inputs that are none of batches and sequences, by their symbols.

    Raises:
        ModelError: the file cannot be read, or an input has a free size that is not given.
        TargetError: the target's descriptor lacks what predictions need.
        UnsupportedByTargetError: the target cannot run the model.
    """
    path = Path(path)
    model = load_model(path)
    size = sum(file.stat().st_size for file in model_files(path, model))
    nodes = len(model.graph)
    normalize(model)
    sites = find_sites(model, every_kind=target is not None and target.emits.every_kind)
    float_sites = {site.node: site for site in sites}
    seen: set[ir.Value] = set()
    listed: set[ir.Value] = set()  # with all that belongs to a packed weight
    rows = []
    for node in model.graph.all_nodes():
        if node in float_sites:
            row, weight = _float_row(float_sites[node]), float_sites[node].weight.value
        elif (operator := operator_of(node)) and operator.weight:
            row, weight = _packed_row(path, node, operator)
            listed.update(value for value in node.inputs if value is not None)
        elif quantized := quantized_node(node):
            row, weight = _quantized_row(node, quantized), quantized.tensors[0]
            listed.update(quantized.tensors)
        else:
            continue
        rows.append(row if weight not in seen else row.model_copy(update={"bytes": 0}))
        seen.add(weight)
    stored = [row for row in rows if row.bytes]
    weights = sum(row.in_features * row.out_features for row in stored)
    site_bytes = sum(row.bytes for row in stored)
    rest = coverage(model, seen | listed, site_bytes, {})
    all_weights = weights + rest.weights
    return Inspection(
        opset=model.opset_imports.get("", 0),
        nodes=nodes,
        bytes=size,
        site_bytes=site_bytes,
        bits_per_weight=8 * site_bytes / weights if weights else None,
        model_bits_per_weight=8 * (site_bytes + rest.weight_bytes) / all_weights if all_weights else None,
        others=rest.rows,
        sites=rows,
        predicted=[] if target is None else predict(model, sites, target, context=context, sizes=sizes),
    )


def _float_row(site: Site) -> InspectedSite:
    stored = site.weight.nbytes
    constant = site.weight.value.const_value
    assert constant is not None
    return InspectedSite(
        name=site.name,
        operator=site.node.op_type,
        role=site.role,
        block=site.block,
        in_features=site.in_features,
        out_features=site.out_features,
        format=constant.dtype.name.lower(),
        bits_per_weight=8 * stored / (site.in_features * site.out_features),
        bytes=stored,
    )


def _quantized_row(node: ir.Node, weight: QuantizedNode) -> InspectedSite:
    stored = sum(value.const_value.nbytes for value in weight.tensors if value.const_value is not None)
    return _row(node, weight.in_features, weight.out_features, stored)


def _packed_row(path: Path, node: ir.Node, operator: Operator) -> tuple[InspectedSite, ir.Value]:
    tensors = [value.const_value for value in node.inputs if value is not None and value.const_value is not None]
    K, N = node.attributes.get_int("K", 0), node.attributes.get_int("N", 0)
    packed = node.inputs[1] if len(node.inputs) > 2 else None
    if packed is None or K < 1 or N < 1:
        raise ModelError(path, f"node {node.name} is not a packed operator as qxc writes it", "compile the model again")
    stored = sum(
        tensor.nbytes for tensor in (tensors if operator.kind == "Gather" else tensors[:-1])
    )  # without the bias
    return _row(node, K, N, stored), packed


def _row(node: ir.Node, K: int, N: int, stored: int) -> InspectedSite:
    """A node that says itself what its weight is."""
    block = node.metadata_props.get(BLOCK, "")
    return InspectedSite(
        name=node.name or "",
        operator=node.op_type,
        role=node.metadata_props.get(ROLE, "other"),
        block=int(block) if block.isdecimal() else None,
        in_features=K,
        out_features=N,
        format=node.metadata_props.get(SCHEME, "unknown"),
        bits_per_weight=8 * stored / (K * N),
        bytes=stored,
    )
