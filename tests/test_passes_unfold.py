"""Attention, rotary embeddings and norms that are one operator: as those of ours they compute what onnxruntime does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from graph_models import Builder
from onnx import TensorProto, helper, numpy_helper
from operator_models import available_isas, relative_error, session_of
from torch.nn import functional

from qxcompiler.graph import load_model, normalize, raise_opset
from qxcompiler.passes import pipelines

BEST = available_isas()[-1]
RNG = np.random.default_rng(0)
HEADS, GROUPS, SIZE = 4, 2, 16
KEEP = {"past_key_values.0.key": "past_length", "past_key_values.0.value": "past_length"}


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def one_node(
    operator: str, inputs: dict[str, np.ndarray | None], constants: dict[str, np.ndarray], outputs: int, contrib: bool,
    **attributes: Any,
) -> onnx.ModelProto:  # fmt: skip
    """A model of one node, whose inputs have free sizes for batch (first) and length (of three axes the second)."""
    names = [name if array is not None else "" for name, array in (inputs | constants).items()]
    results = ["y", *("present.0.key", "present.0.value", "more")[: outputs - 1]]
    node = helper.make_node(
        operator, names, results, name="the_node", domain="com.microsoft" if contrib else "", **attributes
    )
    return modelled([node], inputs, constants, results)


def modelled(
    nodes: list[onnx.NodeProto], inputs: dict[str, np.ndarray | None], constants: dict[str, np.ndarray],
    results: list[str],
) -> onnx.ModelProto:  # fmt: skip
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), free(name, array.shape))
        for name, array in inputs.items()
        if array is not None
    ]
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    made = [onnx.ValueInfoProto(name=name) for name in results]
    graph = helper.make_graph(nodes, "graph", given, made, weights)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def free(name: str, shape: tuple[int, ...]) -> list[Any]:
    sizes: list[Any] = list(shape)
    if name.startswith("past"):
        return ["batch", sizes[1], "past_length", sizes[3]]
    if name.endswith("_of_others"):
        sizes[0], sizes[-2 if len(sizes) > 2 else 1] = "batch", "other_length"
        return sizes
    if name in ("query", "key", "value", "x", "skip", "positions", "whole_mask"):
        sizes[0] = "batch"
        sizes[-2 if len(sizes) > 2 else 1] = {"whole_mask": "total_length"}.get(name, "sequence_length")
    if name in ("mask", "bias") and len(sizes) > 1:
        sizes[-2:] = ["sequence_length", "total_length"]
        sizes[0] = "batch" if len(sizes) == 4 and sizes[0] > 1 else sizes[0]
    return sizes


def ours(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> tuple[ir.Model, list[str]]:
    """The model with operators of ours; what was said of others."""
    model = load_model(proto)
    normalize(model)
    raise_opset(model)
    passes = pipelines.after_packing([feeds])
    pipelines.run(passes, model)
    return model, [note for each in passes for note in getattr(each, "notes", [])]


def check(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], operators: dict[str, int]) -> ir.Model:
    """With the library and without it, the model of these operators gives what the original gives."""
    model, notes = ours(proto, feeds)
    assert not notes
    assert Counter(node.op_type for node in model.graph if node.domain == "qxc") == operators
    assert not any(node.domain == "com.microsoft" for node in model.graph)
    check_equal(proto, model, feeds)
    return model


def check_equal(proto: onnx.ModelProto, model: ir.Model, feeds: dict[str, np.ndarray]) -> None:
    expected = session_of(proto.SerializeToString(), None).run(None, feeds)
    after = ir.to_proto(model)
    for isa in (BEST, None):
        for y, reference in zip(session_of(after.SerializeToString(), isa).run(None, feeds), expected, strict=True):
            assert y.shape == reference.shape
            assert relative_error(y, reference) <= 1e-5


Q, K, V = floats(2, HEADS, 3, SIZE), floats(2, GROUPS, 3, SIZE), floats(2, GROUPS, 3, SIZE)
FLAT = floats(2, 3, HEADS * SIZE), floats(2, 3, GROUPS * SIZE), floats(2, 3, GROUPS * SIZE)
PAST = floats(2, GROUPS, 4, SIZE), floats(2, GROUPS, 4, SIZE)
OTHERS = floats(2, GROUPS, 5, SIZE), floats(2, GROUPS, 5, SIZE)
SEEN = (RNG.random((2, 1, 3, 3)) < 0.5) | (np.arange(3) == 0)
SEEN[1, 0, 1] = False  # a token that sees none
ALL_SEEN = (RNG.random((2, 1, 3, 7)) < 0.5) | (np.arange(7) == 0)


@pytest.mark.parametrize(
    ("tensors", "mask", "past", "attributes"),
    [
        ((Q, K, V), None, None, {}),
        ((Q, K, V), None, None, {"is_causal": 1, "scale": 0.3}),
        ((Q, *OTHERS), None, None, {"is_causal": 1}),
        ((Q, K, V), SEEN, None, {}),
        ((Q, K, V), floats(2, 1, 3, 3), None, {"is_causal": 1, "softcap": 2.0}),
        ((Q, K, V), floats(3, 3), None, {"scale": 0.5}),
        (FLAT, None, None, {"is_causal": 1, "q_num_heads": HEADS, "kv_num_heads": GROUPS}),
        ((Q, K, V), ALL_SEEN, PAST, {}),
        (FLAT, floats(1, 1, 3, 7), PAST, {"q_num_heads": HEADS, "kv_num_heads": GROUPS}),
        ((Q, K, V), None, PAST, {"is_causal": 1}),
    ],
)
def test_attention_of_the_standard(tensors: Any, mask: Any, past: Any, attributes: Any) -> None:
    others = ("key_of_others", "value_of_others") if tensors[1] is OTHERS[0] else ("key", "value")
    inputs = dict(zip(("query", *others), tensors, strict=True)) | {"mask": mask}
    inputs |= dict(zip(KEEP, past or (), strict=False))
    proto = one_node("Attention", inputs, {}, 3 if past else 1, contrib=False, **attributes)
    feeds = {name: array for name, array in inputs.items() if array is not None}
    check(proto, feeds, {"CachedAttention" if past else "Attention": 1})


ANGLES = {"cos": floats(16, SIZE // 2), "sin": floats(16, SIZE // 2)}
GROUPED = {"num_heads": HEADS, "kv_num_heads": GROUPS}


def grouped(packed: bool, past: int, batch: int = 2, **options: Any) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A `GroupQueryAttention` as onnxruntime-genai's builder writes it: lengths are sums of the mask."""
    b = Builder()
    ones = b.op("ReduceSum", "whole_mask", b.ints(1), keepdims=1)
    lengths = b.op("Cast", b.op("Sub", ones, b.ints(1)), to=TensorProto.INT32)
    one = b.constant(np.array(1, np.int64))
    total = b.op("Cast", b.op("Gather", b.op("Shape", "whole_mask"), one), to=TensorProto.INT32)
    length, width = 3, (HEADS + 2 * GROUPS) * SIZE
    feeds: dict[str, Any] = {"query": floats(batch, length, width if packed else HEADS * SIZE)}
    if not packed:
        feeds |= {name: floats(batch, length, GROUPS * SIZE) for name in ("key", "value")}
    feeds |= {name: floats(batch, GROUPS, past, SIZE) for name in KEEP}
    more = {name: options.pop(name) for name in ("positions", "bias") if name in options}
    tables = ["cos", "sin"] if options.get("do_rotary") else ["", ""]
    names = ["query", *(["", ""] if packed else ["key", "value"]), *KEEP, lengths, total, *tables]
    names += [name if name in more else "" for name in ("positions", "bias")]
    node = helper.make_node(
        "GroupQueryAttention", names, ["y", "present.0.key", "present.0.value"], name="the_node",
        domain="com.microsoft", **GROUPED, **options,
    )  # fmt: skip
    inputs = feeds | {"whole_mask": np.ones((batch, past + length), np.int64)} | more
    constants = {name: numpy_helper.to_array(tensor) for name, tensor in b.initializers.items()} | ANGLES
    return modelled([*b.nodes, node], inputs, constants, ["y", "present.0.key", "present.0.value"]), inputs


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("past", [0, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_rotary": 1},
        {"do_rotary": 1, "local_window_size": 2, "scale": 0.5},
        {"softcap": 3.0},
        {"do_rotary": 1, "positions": np.array([[4, 5, 6], [4, 5, 6]])},
        {"bias": floats(2, HEADS, 3, 7)},
    ],
)
def test_grouped_queries(packed: bool, past: int, options: dict[str, Any]) -> None:
    batch, options = 1 if past else 2, dict(options)
    if "bias" in options:
        options["bias"] = options["bias"][:batch, :, :, : past + 3].copy()
    if "positions" in options:  # without a past, onnxruntime counts from the first text's first one
        options["positions"] = options["positions"][:batch]
    proto, feeds = grouped(packed, past, batch, **options)
    check(proto, feeds, {"RotaryCachedAttention" if options.get("do_rotary") else "CachedAttention": 1})


def test_padding_of_grouped_queries() -> None:
    """Texts of one batch, filled up from the left, as each of them alone."""
    proto, feeds = grouped(packed=True, past=0, do_rotary=1)
    model, _ = ours(proto, feeds)
    runner, padded = session_of(ir.to_proto(model).SerializeToString(), BEST), dict(feeds)
    padded["whole_mask"] = np.array([[0, 1, 1], [1, 1, 1]])
    together = runner.run(None, padded)[0]
    for row, first in ((0, 1), (1, 0)):
        alone = {name: array[row : row + 1] for name, array in feeds.items()}
        alone |= {"query": alone["query"][:, first:], "whole_mask": alone["whole_mask"][:, first:]}
        expected = session_of(proto.SerializeToString(), None).run(None, alone)[0]
        assert relative_error(together[row, first:], expected[0]) <= 1e-5


WHOLE = floats(2, 3, HEADS * SIZE), floats(2, 5, HEADS * SIZE), floats(2, 5, HEADS * SIZE)


@pytest.mark.parametrize(
    ("lengths", "more", "attributes"),
    [
        ((3, 5), {}, {}),
        (
            (5, 5),
            {"bias": floats(3 * HEADS * SIZE), "padding_of_others": None, "mask": floats(2, HEADS, 5, 5)},
            {"scale": 0.3},
        ),
        ((5, 5), {}, {"unidirectional": 1}),
        ((3, 5), {"bias": None, "padding_of_others": np.array([[1] * 5, [1] * 3 + [0] * 2], np.int32)}, {}),
    ],
)
def test_multi_head_attention(lengths: tuple[int, int], more: dict[str, Any], attributes: dict[str, Any]) -> None:
    rows, keys = lengths
    inputs: dict[str, Any] = {"query": floats(2, rows, HEADS * SIZE)}
    others = ("key", "value") if rows == keys else ("key_of_others", "value_of_others")
    inputs |= {name: floats(2, keys, HEADS * SIZE) for name in others} | more
    proto = one_node("MultiHeadAttention", inputs, {}, 1, contrib=True, num_heads=HEADS, **attributes)
    check(proto, {name: array for name, array in inputs.items() if array is not None}, {"Attention": 1})


@pytest.mark.parametrize("contrib", [False, True])
@pytest.mark.parametrize("width", [SIZE, SIZE - 2])
@pytest.mark.parametrize("flat", [False, True])
def test_rotary_embeddings_become_attentions(contrib: bool, width: int, flat: bool) -> None:
    """Of queries and keys, with the heads side by side or apart."""
    b, positions = Builder(), np.array([[0, 1, 2], [4, 5, 6]])
    tables = {name: array[:, : width // 2].copy() for name, array in ANGLES.items()}
    partly = {} if width == SIZE else {"rotary_embedding_dim": width}
    turned = []
    for name, count in (("query", HEADS), ("key", GROUPS)):
        inputs = [name, "positions", "cos", "sin"] if contrib else [name, "cos", "sin", "positions"]
        counted = {"num_heads": count} if flat or (contrib and partly) else {}
        domain = "com.microsoft" if contrib else ""
        turned.append(b.op("RotaryEmbedding", *inputs, domain=domain, **counted, **partly))
    heads = {"q_num_heads": HEADS, "kv_num_heads": GROUPS} if flat else {}
    y = b.op("Attention", *turned, "value", is_causal=1, **heads)
    feeds = dict(zip(("query", "key", "value"), FLAT if flat else (Q, K, V), strict=True)) | {"positions": positions}
    model = check(modelled(b.nodes, feeds, tables, [y]), feeds, {"RotaryAttention": 1})
    assert {node.op_type for node in model.graph if node.domain == ""}.isdisjoint({"Neg", "MatMul", "Softmax"})


class OneLayer(torch.nn.Module):
    """Grouped queries between two norms, in PyTorch's own functions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = torch.nn.RMSNorm(64), torch.nn.LayerNorm(64)
        widths = {"query": 64, "key": 32, "value": 32, "output": 64}
        self.layers = torch.nn.ModuleDict({name: torch.nn.Linear(64, width) for name, width in widths.items()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        query, key, value = (
            self.layers[name](normed).view(*x.shape[:2], -1, SIZE).transpose(1, 2) for name in ("query", "key", "value")
        )
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.last(x + self.layers["output"](attended.transpose(1, 2).reshape(*x.shape)))


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 23])
def test_what_pytorch_exports(opset: int, tmp_path: Path) -> None:
    """By its newer exporter, in the operators that each opset has."""
    x, sizes = torch.randn(2, 7, 64), ("batch_size", "sequence_length")
    free_sizes = {axis: torch.export.Dim(name) for axis, name in enumerate(sizes)}
    exported = torch.onnx.export(
        OneLayer().eval(), (x,), dynamo=True, opset_version=opset, dynamic_shapes=(free_sizes,)
    )
    exported.save(tmp_path / "model.onnx")
    proto, feeds = onnx.load(tmp_path / "model.onnx"), {"x": x.numpy()}
    assert any(node.op_type == "Attention" for node in proto.graph.node) == (opset == 23)
    check(proto, feeds, {"RMSNorm": 1, "Attention": 1, "SkipLayerNorm": 1})


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("operator", "ours"),
    [("SkipLayerNormalization", "SkipLayerNorm"), ("SkipSimplifiedLayerNormalization", "SkipRMSNorm")],
)
def test_norms(operator: str, ours: str, bias: bool) -> None:
    inputs = {"x": floats(2, 3, 16), "skip": floats(2, 3, 16)}
    rows = {"gain": floats(16)} | ({"shift": floats(16)} if operator == "SkipLayerNormalization" else {})
    rows |= {"bias": floats(16)} if bias else {}
    names = [*inputs, *rows]
    nodes = [
        helper.make_node(operator, names, ["y", "", "", "sum"], name="norm", domain="com.microsoft", epsilon=1e-5),
        helper.make_node("Add", ["y", "sum"], ["z"]),
    ]
    check(modelled(nodes, inputs, rows, ["z"]), inputs, {ours: 1})


@pytest.mark.parametrize(
    ("operator", "attributes", "why"),
    [
        ("RotaryEmbedding", {"interleaved": 1}, "rotates in pairs"),
        ("MultiHeadAttention", {"num_heads": HEADS}, "packed"),
        ("MultiHeadAttention", {"num_heads": HEADS, "unidirectional": 1}, "of another length"),
    ],
)
def test_what_stays_and_why(operator: str, attributes: dict[str, Any], why: str) -> None:
    if operator == "RotaryEmbedding":
        inputs: dict[str, Any] = {"query": Q, "positions": np.array([[0, 1, 2], [4, 5, 6]])}
        proto = one_node(operator, inputs, ANGLES, 1, contrib=True, **attributes)
    else:
        lengths = {"fixed_query": 3, "fixed_key": 5, "fixed_value": 5}
        looks_back = {name: floats(2, length, HEADS * SIZE) for name, length in lengths.items()}
        inputs = looks_back if "unidirectional" in attributes else {"packed": floats(2, 3, HEADS, 3, SIZE)}
        proto = one_node(operator, inputs, {}, 1, contrib=True, **attributes)
    model, notes = ours(proto, inputs)
    assert len(notes) == 1 and "'the_node'" in notes[0] and why in notes[0] and "stays as it is" in notes[0]
    assert [node.op_type for node in model.graph] == [operator]
    if operator != "MultiHeadAttention":  # whose packed inputs onnxruntime's processors do not take
        check_equal(proto, model, inputs)
