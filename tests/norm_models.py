"""Small models of one norm, and what they must compute."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import convert_attributes

from qxcompiler.runtime_ops.operators import DOMAIN, MINIMUM_OPSET, OPERATORS, VERSION, function_for


def norm_model(
    name: str,
    dtype: type[np.generic] = np.float32,
    shapes: dict[str, list[str | int | None]] | None = None,
    row: np.ndarray | None = None,
    opset: int = MINIMUM_OPSET,
    with_body: bool = True,
    **attributes: object,
) -> bytes:
    """One node, whose inputs and outputs are the model's; gain and bias are constants where there is a `row`."""
    operator = OPERATORS[name]

    def typed(each: str) -> ir.TensorType:
        is_row = each in ("gain", "bias")
        return ir.TensorType(ir.DataType.FLOAT if is_row else ir.DataType.from_numpy(np.dtype(dtype)))

    inputs = [
        ir.Value(name=each, type=typed(each), shape=ir.Shape(shapes[each]) if shapes else None)
        for each in operator.inputs
    ]
    constants = [value for value in inputs if row is not None and value.name in ("gain", "bias")]
    for value in constants:
        value.const_value = ir.tensor(row, name=value.name)
    values = {"epsilon": 1e-5} | attributes
    attribute_list = convert_attributes({key: value for key, value in values.items() if value is not None})
    node = ir.Node(DOMAIN, name, inputs, attributes=attribute_list, name="the_node", num_outputs=len(operator.outputs))
    for value, each in zip(node.outputs, operator.outputs, strict=True):
        value.name, value.type = each, typed(each)
    graph = ir.Graph(
        [value for value in inputs if value not in constants],
        list(node.outputs),
        nodes=[node],
        initializers=constants,
        opset_imports={"": opset, DOMAIN: VERSION},
        name="one",
    )
    model = ir.Model(graph, ir_version=9, functions=[function_for(name, opset)] if with_body else [])
    return ir.to_proto(model).SerializeToString()


def draw_norm_inputs(
    name: str, seed: int, shape: tuple[int, ...], dtype: type[np.generic] = np.float32
) -> dict[str, np.ndarray]:
    """Normal numbers around a half, rows of several sizes."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.integers(-3, 3, (*shape[:-1], 1))
    inputs = {each: ((rng.standard_normal(shape) + 0.5) * sizes).astype(dtype) for each in ("X", "skip")}
    inputs |= {each: rng.standard_normal(shape[-1]).astype(np.float32) for each in ("gain", "bias")}
    return {each: inputs[each] for each in OPERATORS[name].inputs}


def expected_norm(inputs: dict[str, np.ndarray], epsilon: float = 1e-5) -> list[np.ndarray]:
    """The definition in float64; LayerNorm where there is a bias. The sum is as the tensors' type rounds it."""
    total = inputs["X"] + inputs["skip"] if "skip" in inputs else inputs["X"]
    S = total.astype(np.float64)
    if "bias" in inputs:
        S = S - S.mean(-1, keepdims=True)
    Y = S / np.sqrt((S**2).mean(-1, keepdims=True) + epsilon) * inputs["gain"] + inputs.get("bias", 0)
    return [Y, total] if "skip" in inputs else [Y]
