"""Small models of one attention operator, and what they must compute."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import convert_attributes

from qxcompiler.formats import block_size, hadamard
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
    kept = ir.DataType.UINT8 if bits_of(name) else element
    types = {each: kept if each.startswith("past") else element for each in operator.inputs}
    inputs = [
        ir.Value(name=each, type=ir.TensorType(types[each]), shape=ir.Shape(shapes[each]) if shapes else None)
        for each in operator.inputs
    ]
    values = {"num_heads": heads, "kv_num_heads": groups, "scale": 0.3, "softcap": 0.0} | attributes
    attribute_list = convert_attributes({key: value for key, value in values.items() if value is not None})
    node = ir.Node(DOMAIN, name, inputs, attributes=attribute_list, name="the_node", num_outputs=len(operator.outputs))
    for value, each in zip(node.outputs, operator.outputs, strict=True):
        value.name, value.dtype = each, kept if each.startswith("present") else element
    opsets = {"": opset, DOMAIN: VERSION}
    graph = ir.Graph(inputs, list(node.outputs), nodes=[node], opset_imports=opsets, name="one")
    model = ir.Model(graph, ir_version=9, functions=[function_for(name, opset)] if with_body else [])
    return ir.to_proto(model).SerializeToString()


def bits_of(name: str) -> int:
    """Of the codes that an operator keeps; 0 where it keeps numbers."""
    return {"Int8": 8, "Int4": 4}.get(name[-4:], 0)


def kept_rows(rows: np.ndarray, bits: int) -> np.ndarray:
    """The cache's format by its definition, row by row: float [..., D] to uint8 [..., row bytes]."""
    *leading, size = rows.shape
    largest, zero = (127, 128) if bits == 8 else (7.5, 7.5)
    bytes_ = size if bits == 8 else (size + 1) // 2
    kept = np.zeros((*leading, bytes_ + 2), np.uint8)
    for place in np.ndindex(*leading):
        row = rows[place].astype(np.float32)
        if bits == 4:
            row = turned(row.astype(np.float64)).astype(np.float32)
        exact = np.abs(row).max() / np.float32(largest)
        codes, stored = np.full(size, int(zero + 0.5), np.uint8), 0
        if not np.isfinite(row).all():
            stored = 0x7FC0
        elif exact >= 2.0**-126:
            fraction, exponent = np.frexp(np.float64(exact))  # in [0.5, 1)
            steps = np.ceil(fraction * 256)  # eight bits
            stored = int(steps - 128 + 128 * (exponent + 126))
            scale = np.float32(np.ldexp(steps / 256, exponent))
            codes = np.floor(row / scale + np.float32(zero + 0.5)).astype(np.uint8)
        if bits == 4:
            codes = np.append(codes, np.zeros(2 * bytes_ - size, np.uint8))
            codes = codes[:bytes_] + 16 * codes[bytes_:]
        kept[place] = [*codes, stored % 256, stored // 256]
    return kept


def numbers_of(kept: np.ndarray, bits: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What rows of a cache stand for, float64 [..., D], turned back; and half of the distance between two codes."""
    stored = kept[..., -2].astype(np.uint32) + 256 * kept[..., -1].astype(np.uint32)
    scale = (stored << 16).view(np.float32).astype(np.float64)[..., None]
    codes = kept[..., :-2].astype(np.float64)
    if bits == 4:
        codes = np.concatenate([codes % 16, codes // 16], axis=-1)[..., :size]
    numbers = scale * (codes - (128 if bits == 8 else 7.5))
    return (numbers if bits == 8 else turned(numbers, back=True)), scale / 2


def turned(rows: np.ndarray, *, back: bool = False) -> np.ndarray:
    """Rows of D numbers times Hadamard matrices, or times their inverse."""
    block = block_size(rows.shape[-1])
    R = hadamard(block).double().numpy() if block > 1 else np.eye(1)
    return (rows.reshape(-1, block) @ (R.T if back else R)).reshape(rows.shape)


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
    if bits := bits_of(name):
        inputs |= {each: kept_rows(inputs[each], bits) for each in ("past_key", "past_value")}
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
    inputs: dict[str, np.ndarray],
    heads: int,
    groups: int,
    scale: float = 0.3,
    softcap: float = 0.0,
    kept: list[np.ndarray] | None = None,
    bits: int = 0,
) -> list[np.ndarray]:
    """The definition in float64, head by head.

    Args:
        kept: presents in codes of so many bits, which are attended to as they are; `exact_rows` says what they hold.
    """
    batch, length, columns = inputs["query"].shape
    size, dtype = columns // heads, inputs["key"].dtype
    Q, K, V = exact_rows(inputs, heads, groups)
    mask = inputs["mask"].astype(np.float64)
    present = []
    if kept:
        K, V = (numbers_of(each, bits, size)[0][:, :, : mask.shape[-1]] for each in kept)
        present = kept
    elif "past_key" in inputs:
        tokens = mask.shape[-1]
        K = K.astype(dtype).astype(np.float64)  # as they are kept
        for past, new in ((inputs["past_key"], K), (inputs["past_value"], V)):
            longer = np.zeros((batch, groups, max(past.shape[2], tokens), size))
            longer[:, :, : past.shape[2]] = past
            longer[:, :, tokens - length : tokens] = new
            present.append(longer)
        K, V = (each[:, :, :tokens] for each in present)
    elif "cos" in inputs:
        K = K.astype(dtype).astype(np.float64)
    Y = np.zeros((batch, length, heads, size))
    mask = np.broadcast_to(mask, (batch, heads, length, K.shape[2]))
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


def kept_attention(inputs: dict[str, np.ndarray], heads: int, groups: int, bits: int) -> np.ndarray:
    """Y of a cache in codes, as far as they are known: rows that nearly tie may have other ones."""
    length, tokens = inputs["query"].shape[1], inputs["mask"].shape[-1]
    presents = []
    for name, new in zip(("key", "value"), exact_rows(inputs, heads, groups)[1:], strict=True):
        before = inputs[f"past_{name}"][:, :, : tokens - length]
        presents.append(np.concatenate([before, kept_rows(new, bits)], axis=2))
    return expected_attention(inputs, heads, groups, kept=presents, bits=bits)[0]


def exact_rows(inputs: dict[str, np.ndarray], heads: int, groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, keys and values [B, heads, L, D] of an attention's inputs, embedded, in float64."""
    wide = {name: array.astype(np.float64) for name, array in inputs.items() if array.dtype != np.uint8}
    size = wide["query"].shape[-1] // heads

    def by_head(name: str, count: int) -> np.ndarray:
        return wide[name].reshape(*wide[name].shape[:2], count, size).transpose(0, 2, 1, 3)

    Q, K, V = by_head("query", heads), by_head("key", groups), by_head("value", groups)
    if "cos" in wide:
        Q, K = (rotated(x, wide["cos"], wide["sin"]) for x in (Q, K))
    return Q, K, V
