"""Decoders as onnxruntime-genai's builder writes them: its own operators, and past keys whose size only a file says."""

from __future__ import annotations

import json

import graph_models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_transformers import VOCABULARY, save_tokenizer

import qxcompiler
from qxcompiler.errors import QxcError
from qxcompiler_runtime import generate
from qxcompiler_runtime.configuration import context_limit, end_of_sequence, head_size
from qxcompiler_runtime.decoder import Decoder
from qxcompiler_runtime.model import ModelFile

WIDTH, HEADS, GROUPS, SIZE = 64, 4, 2, 16
CONFIGURATION = {
    "model": {
        "context_length": 64,
        "eos_token_id": [1, 2],
        "vocab_size": VOCABULARY,
        "decoder": {
            "head_size": SIZE,
            "hidden_size": WIDTH,
            "num_attention_heads": HEADS,
            "num_key_value_heads": GROUPS,
        },
    }
}


def built() -> onnx.ModelProto:
    b = graph_models.Builder(opset=21)
    b.domains["com.microsoft"] = 1
    table = b.weight(VOCABULARY, WIDTH)
    total = b.op("Cast", b.op("Gather", b.op("Shape", "attention_mask"), b.ints(1)), to=TensorProto.INT32)
    ones = b.op("ReduceSum", "attention_mask", b.ints(1), keepdims=1)
    lengths = b.op("Cast", b.op("Sub", ones, b.ints(1)), to=TensorProto.INT32)
    angles = (b.weight(64, SIZE // 2), b.weight(64, SIZE // 2))
    x, presents = b.op("Gather", table, "input_ids"), []
    output = None
    for layer in range(2):
        pasts = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        gain = b.weight(WIDTH)
        if output is None:
            normed = b.op("SimplifiedLayerNormalization", x, gain, epsilon=1e-5)
        else:
            normed, _, _, x = b.op(
                "SkipSimplifiedLayerNormalization", x, output, gain, domain="com.microsoft", outputs=4
            )
        packed = b.linear(normed, WIDTH, (HEADS + 2 * GROUPS) * SIZE)
        attended, *kept = b.op(
            "GroupQueryAttention", packed, "", "", *pasts, lengths, total, *angles, domain="com.microsoft", outputs=3,
            num_heads=HEADS, kv_num_heads=GROUPS, do_rotary=1,
        )  # fmt: skip
        presents += kept
        output = b.linear(attended, WIDTH, WIDTH)
    logits = b.linear(b.op("Add", x, output), WIDTH, VOCABULARY)
    past = (TensorProto.FLOAT, ["batch_size", GROUPS, "past_sequence_length", "kv_cache_dim"])
    inputs = {
        "input_ids": (TensorProto.INT64, ["batch_size", "sequence_length"]),
        "attention_mask": (TensorProto.INT64, ["batch_size", "total_sequence_length"]),
    } | {f"past_key_values.{layer}.{kind}": past for layer in range(2) for kind in ("key", "value")}
    proto = b.model(inputs, [logits, *presents])
    names = ["logits", *(f"present.{layer}.{kind}" for layer in range(2) for kind in ("key", "value"))]
    renamed = dict(zip([each.name for each in proto.graph.output], names, strict=True))
    for node in proto.graph.node:
        node.output[:] = [renamed.get(name, name) for name in node.output]
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", VOCABULARY]))
    proto.graph.output.extend(helper.make_tensor_value_info(name, past[0], past[1]) for name in names[1:])
    return proto


@pytest.fixture
def folder(tmp_path):
    """A model, its tokenizer, and onnxruntime-genai's configuration alone."""
    path = tmp_path / "built"
    path.mkdir()
    onnx.save(built(), path / "model.onnx")
    save_tokenizer(path)
    (path / "genai_config.json").write_text(json.dumps(CONFIGURATION))
    draws = np.random.default_rng(0)
    (path / "calibration.txt").write_text(" ".join(f"w{i}" for i in draws.integers(0, VOCABULARY - 1, 600)))
    return path


def test_it_is_compiled_tuned_and_decoded(folder, tmp_path):
    out = tmp_path / "out"
    report = qxcompiler.compile(
        folder / "model.onnx", "cpu-x86", out, calibration=folder / "calibration.txt", weights="lut3g32",
        bits_per_weight=6, tune=8, samples=8, length=16,
    )  # fmt: skip
    assert report.tuning.loss_after <= report.tuning.loss_before
    assert {site.role for site in report.sites} == {"embedding", "query_key_value", "attention_output", "head"}
    assert json.loads((out / "genai_config.json").read_text())["model"]["decoder"]["head_size"] == SIZE
    kinds = {node.op_type for node in onnx.load(out / "model.onnx", load_external_data=False).graph.node}
    assert {"RotaryCachedAttention", "SkipRMSNorm"} <= kinds
    assert not kinds & {"GroupQueryAttention", "SkipSimplifiedLayerNormalization"}
    ids = np.random.default_rng(1).integers(3, VOCABULARY, (1, 9))
    for path in (folder, out):
        whole = Decoder(ModelFile(path / "model.onnx")).step_of_each(ids)
        decoder = Decoder(ModelFile(path / "model.onnx"))
        one_by_one = [decoder.step([[token]]) for token in ids[0].tolist()]
        np.testing.assert_allclose(np.stack(one_by_one, 1), whole, rtol=1e-4, atol=1e-4)
    assert len(generate(out / "model.onnx", "w1 w2", max_new_tokens=4, stop=()).tokens) <= 4


def test_it_keeps_keys_in_few_bits(folder, tmp_path):
    """Beside the same weights, with keys as they are."""
    ids, logits = np.random.default_rng(1).integers(3, VOCABULARY, (1, 9)), {}
    for kv in (None, "int8"):
        out = tmp_path / str(kv)
        qxcompiler.compile(folder / "model.onnx", "cpu-x86", out, weights="int8g32", quantizer="rtn", kv=kv)
        inputs = {value.name: value for value in onnx.load(out / "model.onnx", load_external_data=False).graph.input}
        assert inputs["past_key_values.0.key"].type.tensor_type.shape.dim[3].dim_value == SIZE + (2 if kv else 0)
        logits[kv] = Decoder(ModelFile(out / "model.onnx")).step_of_each(ids)
    assert 0 < np.abs(logits["int8"] - logits[None]).max() < 0.02 * np.abs(logits[None]).max()


def test_without_the_file_the_size_is_missed(folder, tmp_path):
    (folder / "genai_config.json").unlink()
    with pytest.raises(QxcError, match=r"fails on the calibration samples|failed to run|cannot run"):
        qxcompiler.compile(
            folder / "model.onnx", "cpu-x86", tmp_path / "out", calibration=folder / "calibration.txt", length=16,
            weights="lut3g32",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_what_the_configurations_say(tmp_path):
    assert (context_limit(tmp_path / "model.onnx"), head_size(tmp_path), end_of_sequence(tmp_path)) == (
        None,
        None,
        set(),
    )
    (tmp_path / "genai_config.json").write_text(json.dumps(CONFIGURATION))
    assert (context_limit(tmp_path / "model.onnx"), head_size(tmp_path), end_of_sequence(tmp_path)) == (
        64,
        SIZE,
        {1, 2},
    )
    (tmp_path / "genai_config.json").unlink()
    config = {"max_position_embeddings": 32, "hidden_size": 96, "num_attention_heads": 3, "eos_token_id": 7}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert (context_limit(tmp_path / "model.onnx"), head_size(tmp_path), end_of_sequence(tmp_path)) == (32, 32, {7})
    (tmp_path / "config.json").write_text(json.dumps(config | {"head_dim": 48}))
    assert head_size(tmp_path) == 48
    for text in ("[]", '{"model": []}', '{"model": {"decoder": 3}}', "{"):
        (tmp_path / "config.json").write_text(text)
        (tmp_path / "genai_config.json").write_text(text)
        assert (context_limit(tmp_path / "model.onnx"), head_size(tmp_path)) == (None, None)
