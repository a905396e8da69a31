"""What the graph rewrites share."""

from __future__ import annotations

import onnx_ir as ir
import torch

__all__ = ["Initializers", "bias_input", "replace_value"]


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


def bias_input(added: ir.Value, N: int, initializers: Initializers, factor: float = 1.0) -> ir.Value | None:
    """`factor * added` as a packed operator's bias, float32 [N] or [1]; None unless it is the same for every row.

    Args:
        added: a constant, or not, that broadcasts to a layer's output [..., N].
        N: the layer's output features.
        initializers: where a bias goes that is not there as the operator takes it.
        factor: a number.
    """
    constant = added.const_value
    if constant is None:
        return None
    shape = constant.shape.numpy()
    if any(size != 1 for size in shape[:-1]) or (shape and shape[-1] not in (1, N)):
        return None
    if constant.dtype == ir.DataType.FLOAT and len(shape) == 1 and factor == 1:
        return added
    values = factor * torch.from_numpy(constant.numpy().astype("float32").reshape(-1))
    return initializers.add(f"qxc.bias.{factor!r}.{added.name}", values)


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Let everything that reads `old` read `new`, under the old name."""
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    new.name, old.name = old.name, None
