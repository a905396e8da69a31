"""What can be asked of a single node, and a value put in another's place."""

from __future__ import annotations

__all__ = ["bodies", "captured", "data_inputs", "is_standard", "replace_value", "subgraphs"]

from collections.abc import Container, Sequence

import onnx_ir as ir

# Operators whose outputs hold none of their inputs' numbers, and those that pass on those of some inputs.
_SHAPES = {"Shape", "Size", "ConstantOfShape", "Range", "NonZero", "ArgMax", "ArgMin"}
_CONDITIONS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "Xor"}
_NO_DATA = _SHAPES | _CONDITIONS | {"IsNaN", "IsInf"}
_MOVES = {
    "Reshape",
    "Expand",
    "Unsqueeze",
    "Squeeze",
    "Slice",
    "Split",
    "Pad",
    "Tile",
    "Trilu",
    "Resize",
    "TopK",
}
_GATHERS = {"Gather", "GatherND", "GatherElements"}
_REDUCTIONS = {
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "CumSum",
}
_DATA_INPUTS: dict[str, Sequence[int]] = {
    **dict.fromkeys(_MOVES | _GATHERS | _REDUCTIONS | {"Dropout", "Clip"}, (0,)),
    "Where": (1, 2),
    "ScatterND": (0, 2),
    "ScatterElements": (0, 2),
}


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs, and values captured by a node's bodies, whose numbers reach the outputs."""
    if is_standard(node, _NO_DATA):
        return []
    positions = _DATA_INPUTS.get(node.op_type) if is_standard(node, _DATA_INPUTS) else None
    positions = range(len(node.inputs)) if positions is None else positions
    values = [node.inputs[i] for i in positions if i < len(node.inputs)]
    return [value for value in (*values, *captured(node)) if value is not None]


def is_standard(node: ir.Node, operators: Container[str]) -> bool:
    """Whether a node is one of these operators of the standard, and not of another domain."""
    return node.domain == "" and node.op_type in operators


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The bodies of an `If`, `Loop` or `Scan`."""
    graphs: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs.extend(attribute.as_graphs())
    return graphs


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The bodies of a node and everything nested in them."""
    return [inner for body in bodies(node) for inner in (body, *body.subgraphs())]


def captured(node: ir.Node) -> list[ir.Value]:
    """The values of enclosing graphs that the bodies of a node read."""
    graphs = subgraphs(node)
    read = (value for graph in graphs for inner in graph for value in inner.inputs)
    values = dict.fromkeys((*read, *(value for graph in graphs for value in graph.outputs)))
    return [value for value in values if value is not None and value.graph not in graphs]


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Let everything that reads `old` read `new`, under the old name."""
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    new.name, old.name = old.name, None
