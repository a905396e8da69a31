"""Roles and blocks follow from structure: sites are told apart without any helpful name."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from graph_models import ARCHITECTURES, IDS, Builder, TensorProto

from qxcompiler.graph import (
    find_segments,
    find_sites,
    load_model,
    normalize,
    raise_opset,
)

FLOAT = TensorProto.FLOAT
SEPARATE = ["query", "key", "value", "attention_output"]
GATED, PLAIN = ["gate", "up", "down"], ["up", "down"]


def roles_of(proto: onnx.ModelProto) -> list[tuple[str, int | None]]:
    model = ir.from_proto(proto)
    normalize(model)
    return [(site.role, site.block) for site in find_sites(model)]


def in_blocks(layers: list[list[str]]) -> list[tuple[str, int | None]]:
    return [(role, block) for block, roles in enumerate(layers) for role in roles]


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("llama", [("embedding", None), *in_blocks([SEPARATE + GATED] * 2), ("head", None)]),
        ("bert", [("embedding", None)] * 2 + in_blocks([SEPARATE + PLAIN] * 2)),
        (
            "gpt2",
            [
                ("embedding", None),
                *in_blocks([["query_key_value", "attention_output", *PLAIN]] * 2),
                ("head", None),
            ],
        ),
        (
            "phi3",
            [
                ("embedding", None),
                *in_blocks([["query_key_value", "attention_output", "gate_up", "down"]] * 2),
                ("head", None),
            ],
        ),
        ("encoder_decoder", [("embedding", None), *in_blocks([SEPARATE * 2 + PLAIN] * 3), ("head", None)]),
        ("vit", [*in_blocks([["key", "value", "query", "attention_output", *PLAIN]] * 2), ("head", None)]),
    ],
)
def test_roles_of_an_architecture(architecture, expected):
    assert roles_of(ARCHITECTURES[architecture]()[0]) == expected


def test_plain_chain_alternates_and_ends_in_a_head():
    assert [role for role, _ in roles_of(ARCHITECTURES["mlp"]()[0])] == ["up", "down", "other", "head"]


def test_names_do_not_matter():
    proto, _ = ARCHITECTURES["llama"]()
    expected = roles_of(proto)
    # Claim the opposite of the truth: every gate is called q_proj, and so on.
    matmuls = [node for node in proto.graph.node if node.op_type == "MatMul"]
    for index, node in enumerate(matmuls):
        node.name = ["lm_head", "up_proj", "k_proj", "gate_proj", "q_proj"][index % 5] + str(index)
    assert roles_of(proto) == expected


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("activation", ["Relu", "Tanh", "Sigmoid"])
def test_gate_is_the_activated_side_of_the_product(swapped, activation):
    b = Builder()
    first, second = b.linear("x", 8, 12), b.linear("x", 8, 12)
    factors = [b.op(activation, first), second]
    product = b.op("Mul", *(reversed(factors) if swapped else factors))
    y = b.op("Add", b.linear(product, 12, 8), b.linear("x", 8, 8))
    roles = [role for role, _ in roles_of(b.model({"x": (FLOAT, ["n", 8])}, [y]))]
    assert roles == ["gate", "up", "down", "other"]


def test_a_product_without_activation_is_no_gate():
    b = Builder()
    product = b.op("Mul", b.linear("x", 8, 12), b.linear("x", 8, 12))
    y = b.op("Add", b.linear(product, 12, 8), b.linear("x", 8, 8))
    assert {role for role, _ in roles_of(b.model({"x": (FLOAT, ["n", 8])}, [y]))} == {"other"}


def test_a_condition_is_not_data():
    b = Builder()
    condition = b.op("Cast", b.linear("x", 8, 12), to=TensorProto.BOOL)
    y = b.op("Where", condition, b.op("Relu", b.linear("x", 8, 12)), b.scalar(0))
    y = b.op("Add", b.linear(y, 12, 8), b.linear("x", 8, 8))
    roles = [role for role, _ in roles_of(b.model({"x": (FLOAT, ["n", 8])}, [y]))]
    assert roles == ["other", "up", "down", "other"]


def test_a_router_before_a_softmax_is_not_attention():
    b = Builder()
    y = b.op("Softmax", b.linear("x", 8, 4), axis=-1)
    y = b.op("MatMul", y, b.op("Tanh", b.linear("x2", 8, 4)))
    proto = b.model({"x": (FLOAT, [4, 8]), "x2": (FLOAT, [4, 8])}, [y])
    assert not {role for role, _ in roles_of(proto)} & {"query", "key", "value", "attention_output"}


def test_self_attention_whose_sites_flatten_their_input_each():
    b, x = Builder(), "x"
    for _ in range(2):
        normed = b.layer_norm(x, 8)
        q, k, v = (
            b.heads(b.op("Reshape", b.linear(b.op("Reshape", normed, b.ints(-1, 8)), 8, 8), b.ints(2, 5, 8)), 2)
            for _ in range(3)
        )
        x = b.op("Add", x, b.linear(b.merge(b.attend(q, k, v, 4), 8), 8, 8))
    proto = b.model({"x": (FLOAT, [2, 5, 8])}, [x])
    assert roles_of(proto) == in_blocks([SEPARATE] * 2)


def test_learned_position_bias_on_the_scores():
    b = Builder()
    q, k, v = (b.heads(b.linear("x", 8, 8), 2) for _ in range(3))
    bias = b.op("Transpose", b.op("Gather", b.weight(6, 2), "ids"), perm=[2, 0, 1])
    attended = b.attend(q, k, v, 4, mask=b.op("Unsqueeze", bias, b.ints(0)))
    y = b.op("Add", b.linear(b.merge(attended, 8), 8, 8), "x")
    proto = b.model({"x": (FLOAT, ["n", "s", 8]), "ids": IDS}, [y])
    assert [role for role, _ in roles_of(proto)] == ["query", "key", "value", "embedding", "attention_output"]


@pytest.mark.parametrize(
    ("domain", "operator", "attributes"),
    [
        ("com.microsoft", "MultiHeadAttention", {"num_heads": 2}),
        ("com.microsoft", "GroupQueryAttention", {"num_heads": 2, "kv_num_heads": 2}),
        ("", "Attention", {"q_num_heads": 2, "kv_num_heads": 2}),
    ],
)
def test_fused_attention(domain, operator, attributes):
    b = Builder(opset=23)
    b.domains["com.microsoft"] = 1
    q, k, v = (b.linear("x", 8, 8) for _ in range(3))
    y = b.linear(b.op(operator, q, k, v, domain=domain, **attributes), 8, 8)
    proto = b.model({"x": (FLOAT, ["n", "s", 8])}, [b.op("Add", y, b.linear("x", 8, 8))])
    assert [role for role, _ in roles_of(proto)] == [*SEPARATE, "other"]


def test_fused_attention_with_one_packed_input():
    b = Builder()
    b.domains["com.microsoft"] = 1
    y = b.op("GroupQueryAttention", b.linear("x", 8, 24), domain="com.microsoft", num_heads=2, kv_num_heads=2)
    y = b.op("Add", b.linear(y, 8, 8), b.linear("x", 8, 8))
    roles = [role for role, _ in roles_of(b.model({"x": (FLOAT, ["n", "s", 8])}, [y]))]
    assert roles == ["query_key_value", "attention_output", "other"]


def test_blocks_without_attention_end_at_residual_additions():
    b, x = Builder(), "x"
    x = b.linear(x, 8, 8)
    for _ in range(3):
        x = b.op("Add", x, b.linear(b.op("Relu", b.linear(x, 8, 16)), 16, 8))
    roles = roles_of(b.model({"x": (FLOAT, ["n", 8])}, [x]))
    assert [block for _, block in roles] == [0, 0, 0, 1, 1, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "task", "expected", "sizes"),
    [
        (
            "Llama",
            "text-generation-with-past",
            [*in_blocks([SEPARATE + GATED] * 2), ("head", None)],
            [3, 1, 2, 1, 3, 1, 2, 1, 1],
        ),
        (
            "Qwen3",
            "text-generation-with-past",
            [*in_blocks([SEPARATE + GATED] * 2), ("head", None)],
            [3, 1, 2, 1, 3, 1, 2, 1, 1],
        ),
        (
            "Gemma2",
            "text-generation-with-past",
            [*in_blocks([SEPARATE + GATED] * 2), ("head", None)],
            [3, 1, 2, 1, 3, 1, 2, 1, 1],
        ),
        (
            "Phi3",
            "text-generation-with-past",
            [*in_blocks([["query_key_value", "attention_output", "gate_up", "down"]] * 2), ("head", None)],
            [1, 1, 1, 1, 1, 1, 1, 1, 1],
        ),
        ("Phi", "text-generation-with-past", [*in_blocks([SEPARATE + PLAIN] * 2), ("head", None)], [6, 6, 1]),
        (
            "GPT2",
            "text-generation-with-past",
            [*in_blocks([["query_key_value", "attention_output", *PLAIN]] * 2), ("head", None)],
            [1, 1, 1, 1, 1, 1, 1, 1, 1],
        ),
        (
            "OPT",
            "text-generation-with-past",
            [*in_blocks([SEPARATE + PLAIN] * 2), ("head", None)],
            [3, 1, 1, 1, 3, 1, 1, 1, 1],
        ),
        ("Bert", "feature-extraction", in_blocks([SEPARATE + PLAIN] * 2), [3, 1, 1, 1, 3, 1, 1, 1]),
        ("ViT", "image-classification", None, [3, 1, 1, 1, 3, 1, 1, 1, 1]),
    ],
)
def test_real_exports(tmp_path: Path, family: str, task: str, expected: list | None, sizes: list[int]):
    transformers = pytest.importorskip("transformers")
    exporters = pytest.importorskip("optimum.exporters.onnx")
    sizes_of = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"vocab_size": 64, "max_position_embeddings": 64}
    options = {
        "Llama": {"num_key_value_heads": 2, **sizes_of, **text},
        "Qwen3": {"num_key_value_heads": 2, "head_dim": 8, **sizes_of, **text},
        "Gemma2": {"num_key_value_heads": 2, "head_dim": 8, **sizes_of, **text},
        "Phi3": {"num_key_value_heads": 2, "pad_token_id": 0, **sizes_of, **text},
        "Phi": {**sizes_of, **text},
        "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 64},
        "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32, **sizes_of, **text},
        "Bert": {**sizes_of, **text},
        "ViT": {"image_size": 16, "patch_size": 4, **sizes_of},
    }[family]
    classes = {"GPT2": "GPT2LMHeadModel", "Bert": "BertModel", "ViT": "ViTForImageClassification"}
    config = getattr(transformers, f"{family}Config")(**options)
    network = getattr(transformers, classes.get(family, f"{family}ForCausalLM"))(config).eval()
    exporters.onnx_export_from_model(network, tmp_path, task=task, do_validation=False)
    model = load_model(tmp_path / "model.onnx")
    normalize(model)
    raise_opset(model)
    sites = find_sites(model)
    linear = [(site.role, site.block) for site in sites if site.kind == "linear"]
    if expected is None:
        layers = [{(role, block) for role in SEPARATE + PLAIN} for block in range(2)]
        assert set(linear[:6]) == layers[0]
        assert set(linear[6:12]) == layers[1]
        assert linear[12:] == [("head", None)]
    else:
        assert linear == expected
    assert [len(segment.sites) for segment in find_segments(model, sites)] == sizes
