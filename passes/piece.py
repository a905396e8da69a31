"""A few nodes of a graph as a model of their own, to see what they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from qxcompiler.errors import ModelError
from qxcompiler.runtime_ops.operators import DOMAIN, VERSION, function_for, operator_of
from qxcompiler_runtime import session

__all__ = ["Piece"]


class Piece:
    """What computes some values from given ones.

    Args:
        model: where the values are, or will be.
        outputs: the values to compute.
        feeds: the numbers of those that they depend on.
        constants: of other values, which are taken for constants.

    Raises:
        ModelError: the outputs depend on something else.
    """

    def __init__(
        self,
        model: ir.Model,
        outputs: Sequence[ir.Value],
        feeds: Mapping[ir.Value, np.ndarray],
        constants: Mapping[ir.Value, np.ndarray],
    ) -> None:
        self.model, self.outputs, self.feeds, self.constants = model, outputs, feeds, constants
        self.nodes: dict[ir.Node, None] = {}  # in topological order
        self.initializers: dict[str, onnx.TensorProto] = {}
        for value in outputs:
            self._visit(value)

    def run(self) -> list[np.ndarray]:
        """The outputs, computed by onnxruntime alone.

        Raises:
            ModelError: onnxruntime cannot run it.
        """
        feeds = {value.name: array for value, array in self.feeds.items()}
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in feeds.items()
        ]
        outputs = [onnx.ValueInfoProto(name=value.name) for value in self.outputs]
        protos = [ir.to_proto(node) for node in self.nodes]
        graph = helper.make_graph(protos, "piece", inputs, outputs, list(self.initializers.values()))
        opset = self.model.opset_imports[""]
        own = {node.op_type for node in self.nodes if operator_of(node)}
        domains = {**self.model.opset_imports, DOMAIN: VERSION}
        built = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(*domain) for domain in domains.items()],
            functions=[ir.to_proto(function_for(name, opset)) for name in sorted(own)],
            ir_version=self.model.ir_version,
        )
        runner = session(built.SerializeToString(), library=False, threads=1)
        try:
            return [np.asarray(array) for array in runner.run(None, feeds)]
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise ModelError("a piece of the model", f"onnxruntime cannot run it ({error})", "report this") from error

    def _visit(self, value: ir.Value) -> None:
        stack = [value]
        while stack:
            value = stack[-1]
            node = value.producer()
            if value in self.feeds or value.name in self.initializers or node in self.nodes:
                stack.pop()
            elif value in self.constants:
                self.initializers[value.name or ""] = numpy_helper.from_array(self.constants[value], value.name)
            elif value.const_value is not None:
                self.initializers[value.name or ""] = numpy_helper.from_array(value.const_value.numpy(), value.name)
            elif node is None or (operator_of(node) and operator_of(node).kind):  # type: ignore[union-attr]
                raise ModelError("a piece of the model", f"depends on '{value.name}'", "report this")
            else:
                waiting = [each for each in node.inputs if each is not None and not self._is_done(each)]
                if not waiting:
                    self.nodes[node] = None
                stack += waiting

    def _is_done(self, value: ir.Value) -> bool:
        return value in self.feeds or value.name in self.initializers or value.producer() in self.nodes
