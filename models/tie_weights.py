"""Store a tied embedding once."""

from __future__ import annotations

__all__ = ["TieWeights"]

import numpy as np
import onnx_ir as ir


class TieWeights(ir.passes.InPlacePass):
    """Make tied weights one initializer again, after an exporter has written the embedding table a second
    time.

    A table is a two-dimensional initializer that a `Gather` reads. For every other initializer:

    - equal to the table: its uses become uses of the table;
    - equal to the table's transpose: its uses become uses of a `Transpose` of the table.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph."""
        graph = model.graph
        modified = False
        for table in _embedding_tables(graph):
            for twin in list(graph.initializers.values()):
                if twin is table or twin.is_graph_output():
                    continue
                if _equal(twin, table, transposed=False):
                    replacement = table
                elif _equal(twin, table, transposed=True):
                    replacement = _transposed(graph, table)
                else:
                    continue
                ir.convenience.replace_all_uses_with(twin, replacement)
                graph.initializers.pop(twin.name or "")
                modified = True
        return ir.passes.PassResult(model, modified)


def _embedding_tables(graph: ir.Graph) -> list[ir.Value]:
    """In the order of their first use, of which there may be several."""
    gathers = [node for node in graph.all_nodes() if node.op_type == "Gather" and node.domain == ""]
    tables = dict.fromkeys(value for node in gathers if (value := node.inputs[0]) is not None)
    return [
        value
        for value in tables
        if value.const_value is not None and value.is_initializer() and len(value.const_value.shape) == 2
    ]


def _equal(value: ir.Value, table: ir.Value, *, transposed: bool) -> bool:
    mine, other = value.const_value, table.const_value
    if mine is None or other is None or mine.dtype != other.dtype:
        return False
    step = -1 if transposed else 1
    if tuple(mine.shape) != tuple(other.shape)[::step]:
        return False
    return np.array_equal(mine.numpy(), other.numpy().T if transposed else other.numpy())


def _transposed(graph: ir.Graph, table: ir.Value) -> ir.Value:
    node = ir.node("Transpose", [table], {"perm": [1, 0]}, name=f"{table.name}_transpose")
    (output,) = node.outputs
    output.name = f"{table.name}_transposed"
    output.type = table.type
    output.shape = ir.Shape(tuple(table.shape or ())[::-1])
    graph.insert_before(graph[0], node)
    return output
