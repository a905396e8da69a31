"""Who reads a value, directly or through views of it."""

from __future__ import annotations

__all__ = ["readers"]

import onnx_ir as ir

from qxcompiler.graph.nodes import is_standard

_VIEWS = {"Transpose", "Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Concat"}


def readers(value: ir.Value) -> tuple[dict[ir.Node, int], bool]:
    """The nodes that read the numbers of a value, and whether a graph's output does.

    Nodes that only move or convert the numbers (`Transpose`, `Cast`, `Reshape` and the like) are not listed, but those
    that read their outputs.

    Returns:
        Each node with the index of the input by which it reads the value, and whether the value, or such a view of it,
        is an output of its graph.
    """
    nodes: dict[ir.Node, int] = {}
    is_output = False
    queue, seen = [value], {value}
    while queue:
        value = queue.pop()
        is_output |= value.is_graph_output()
        for node, index in value.uses():
            if is_standard(node, _VIEWS) and (index == 0 or node.op_type == "Concat"):
                views = [output for output in node.outputs if output not in seen]
                queue += views
                seen.update(views)
            else:
                nodes[node] = index
    return nodes, is_output
