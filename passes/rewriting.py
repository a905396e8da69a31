"""What the graph rewrites share."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from copy import copy

import onnx_ir as ir
import torch

from qxcompiler.graph import Names
from qxcompiler.runtime_ops.operators import DOMAIN, VERSION, function_for

__all__ = ["Additions", "add_functions", "bias_input"]


class Additions:
    """What a pass puts into a model, under names that nothing else in it has.

    Constants that are alike are added once; those that the model brings along are never taken for ours.
    """

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._names = Names(model)
        self._constants: dict[Hashable, ir.Value] = {}

    def name(self, preferred: str) -> str:
        """A name for a node or a value."""
        return self._names.new(preferred)

    def node(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, object] | None = None,
        *,
        domain: str = "",
        name: str,
        outputs: int = 1,
    ) -> ir.Node:
        """A node, in no graph yet; its outputs are called after it."""
        name = self.name(name)
        values = [ir.Value(name=self.name(f"{name}.out")) for _ in range(outputs)]
        return ir.node(operator, inputs, attributes, domain=domain, outputs=values, name=name)

    def shared(self, key: Hashable, name: str, tensor: torch.Tensor | ir.TensorProtocol) -> ir.Value:
        """The constant added for that key, an initializer of the main graph, new or old."""
        if key not in self._constants:
            if isinstance(tensor, torch.Tensor):
                tensor = ir.tensor(tensor.numpy())
            tensor = copy(tensor)  # one that several models have is called differently in each
            tensor.name = name
            self._constants[key] = self.constant(tensor)
        return self._constants[key]

    def constant(self, constant: ir.TensorProtocol) -> ir.Value:
        """A new initializer of the main graph, called after the tensor."""
        constant.name = self.name(constant.name or "constant")
        shape = ir.Shape(constant.shape.numpy())
        value = ir.Value(name=constant.name, type=ir.TensorType(constant.dtype), shape=shape, const_value=constant)
        self._graph.register_initializer(value)
        return value

    def remove(self, constant: ir.Value) -> None:
        """Take an initializer that nothing reads any more out of the main graph."""
        del self._graph.initializers[constant.name or ""]


def bias_input(added: ir.Value, N: int, additions: Additions, factor: float = 1.0) -> ir.Value | None:
    """`factor * added` as a packed operator's bias, float32 [N] or [1]; None unless it is the same for every row.

    Args:
        added: a constant, or not, that broadcasts to a layer's output [..., N].
        N: the layer's output features.
        additions: where a bias goes that is not there as the operator takes it.
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
    return additions.shared(("bias", added, factor), f"{added.name}.bias", values)


def add_functions(model: ir.Model, operators: Iterable[str]) -> None:
    """Put the function body of each of our operators in a model, so that it runs without the library."""
    for operator in sorted(operators):
        model.opset_imports[DOMAIN] = VERSION
        function = function_for(operator, model.opset_imports[""])
        model.functions[function.identifier()] = function
