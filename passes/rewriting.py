"""What the graph rewrites share."""

from __future__ import annotations

import onnx_ir as ir
import torch

__all__ = ["Initializers", "replace_value"]


class Initializers:
    """The main graph's initializers, each added once."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph

    def add(self, name: str, tensor: torch.Tensor) -> ir.Value:
        """The initializer of that name, new or old."""
        if name in self._graph.initializers:
            return self._graph.initializers[name]
        return self.add_constant(ir.tensor(tensor.cpu().contiguous().numpy(), name=name))

    def add_constant(self, constant: ir.TensorProtocol) -> ir.Value:
        """A new initializer, of the tensor's name."""
        shape = ir.Shape(constant.shape.numpy())
        value = ir.Value(name=constant.name, type=ir.TensorType(constant.dtype), shape=shape, const_value=constant)
        self._graph.register_initializer(value)
        return value


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Let everything that reads `old` read `new`, under the old name."""
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    new.name, old.name = old.name, None
