"""Small models of one attention operator, and what they must compute."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import convert_attributes

from qxcompiler.runtime_ops.operators import DOMAIN, MINIMUM_OPSET, OPERATORS, VERSION, function_for


def attention_model(
    name: str,
    heads: int,
    groups: int,
    dtype: type[np.generic] = np.float32,
    shapes: dict[str, list[str | int | None]] | None = None,
    opset: int = MINIMUM_OPSET,
    with_body: bool = True,
    **attributes: object,
) -> bytes:
    """One node, whose inputs and outputs are the model's."""
    operator, element = OPERATORS[name], ir.DataType.from_numpy(np.dtype(dtype))
    inputs = [
        ir.Value(name=each, type=ir.TensorType(element), shape=ir.Shape(shapes[each]) if shapes else None)
        for each in operator.inputs
    ]
    values = {"num_heads": heads, "kv_num_heads": groups, "scale": 0.3, "softcap": 0.0} | attributes
    attribute_list = convert_attributes({key: value for key, value in values.items() if value is not None})
    node = ir.Node(DOMAIN, name, inputs, attributes=attribute_list, name="the_node", num_outputs=len(operator.outputs))
    for value, each in zip(node.outputs, operator.outputs, strict=True):
        value.name, value.dtype = each, element
    opsets = {"": opset, DOMAIN: VERSION}
    graph = ir.Graph(inputs, list(node.outputs), nodes=[node], opset_imports=opsets, name="one")
    model = ir.Model(graph, ir_version=9, functions=[function_for(name, opset)] if with_body else [])
    return ir.to_proto(model).SerializeToString()


def draw_inputs(
    name: str,
    seed: int,
    heads: int,
    groups: int,
    size: int,
    batch: int,
    length: int,
    keys: int,
    past: int = 0,
    rotary: int = 0,
    mask: tuple[int, int, int] = (1, 1, 1),
    dtype: type[np.generic] = np.float32,
) -> dict[str, np.ndarray]:
    """Normal numbers; a third of the mask is minus infinity, and a third of the rest the lowest number."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    new = length if "Rotary" in name or "Cached" in name else keys
    tokens = keys if "Cached" in name else new
    inputs = {
        "query": normal(batch, length, heads * size),
        "key": normal(batch, new, groups * size),
        "value": normal(batch, new, groups * size),
        "cos": normal(rng.choice([1, batch]), length, rotary),
        "past_key": normal(batch, groups, past, size),
        "past_value": normal(batch, groups, past, size),
        "mask": normal(*mask, tokens),
    }
    inputs["sin"] = normal(*inputs["cos"].shape)
    draws = rng.random(inputs["mask"].shape)
    inputs["mask"][draws < 0.33] = -np.inf
    inputs["mask"][draws > 0.8] = np.finfo(dtype).min
    return {each: inputs[each] for each in OPERATORS[name].inputs}


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    width = cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    halves = np.concatenate([-turned[..., width // 2 :], turned[..., : width // 2]], axis=-1)
    return np.concatenate([turned * cos[:, None] + halves * sin[:, None], rest], axis=-1)


def expected_attention(
    inputs: dict[str, np.ndarray], heads: int, groups: int, scale: float = 0.3, softcap: float = 0.0
) -> list[np.ndarray]:
    """The definition in float64, head by head."""
    wide = {name: array.astype(np.float64) for name, array in inputs.items()}
    batch, length, columns = wide["query"].shape
    size = columns // heads

    def by_head(name: str, count: int) -> np.ndarray:
        return wide[name].reshape(*wide[name].shape[:2], count, size).transpose(0, 2, 1, 3)

    Q, K, V = by_head("query", heads), by_head("key", groups), by_head("value", groups)
    if "cos" in wide:
        Q, K = (rotated(x, wide["cos"], wide["sin"]) for x in (Q, K))
        K = K.astype(inputs["key"].dtype).astype(np.float64)  # as they are kept
    present = []
    if "past_key" in wide:
        tokens = wide["mask"].shape[-1]
        for past, new in ((wide["past_key"], K), (wide["past_value"], V)):
            longer = np.zeros((batch, groups, max(past.shape[2], tokens), size))
            longer[:, :, : past.shape[2]] = past
            longer[:, :, tokens - length : tokens] = new
            present.append(longer)
        K, V = (each[:, :, :tokens] for each in present)
    Y = np.zeros((batch, length, heads, size))
    mask = np.broadcast_to(wide["mask"], (batch, heads, length, K.shape[2]))
    for b, h, i in np.ndindex(batch, heads, length):
        keys, values = K[b, h * groups // heads], V[b, h * groups // heads]
        scores = keys @ Q[b, h, i] * scale
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        scores = scores + mask[b, h, i]
        if not np.isneginf(scores).all():
            weights = np.exp(scores - scores.max())
            Y[b, i, h] = weights @ values / weights.sum()
    return [Y.reshape(batch, length, columns), *present]
