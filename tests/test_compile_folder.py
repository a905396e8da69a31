"""A folder of models is compiled as one: an encoder-decoder with what each part sees when the model writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_models import Builder
from onnx import TensorProto, numpy_helper
from tiny_transformers import SEQ2SEQ, VOCABULARY, save_model

import qxcompiler
from qxcompiler.errors import ModelError, QxcError, UsageError
from qxcompiler.evaluation.encoder_decoder import EncoderDecoder

FILES = ["decoder_model.onnx", "decoder_with_past_model.onnx", "encoder_model.onnx"]
QUICK = {"samples": 4, "length": 16, "weights": "int8g32"}


@pytest.fixture(scope="module")
def bart(tmp_path_factory) -> Path:
    """A tiny BART, exported, with text to calibrate on."""
    folder = tmp_path_factory.mktemp("bart")
    (folder / "source").mkdir()
    save_model(folder / "source", "BartForConditionalGeneration", "bart", SEQ2SEQ)
    exported = qxcompiler.export(folder / "source", folder / "exported")
    draws = np.random.default_rng(0)
    (exported / "text.txt").write_text(" ".join(f"w{i}" for i in draws.integers(3, VOCABULARY - 1, 400)))
    return exported


def written(folder: Path, ids: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The tokens that a model writes, and its logits for them."""
    model = EncoderDecoder(folder)
    feeds = model.feeds({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    decoder = qxcompiler.session(folder / "decoder_model.onnx")
    return feeds["decoder_model.onnx"]["input_ids"], decoder.run(["logits"], feeds["decoder_model.onnx"])


def test_an_encoder_decoder_is_compiled_as_a_whole(bart, tmp_path):
    out = tmp_path / "out"
    reports = qxcompiler.compile_folder(bart, "cpu-x86", out, calibration=bart / "text.txt", **QUICK)
    assert sorted(reports) == FILES
    for file, report in reports.items():
        name = file.removesuffix(".onnx")
        assert json.loads((out / f"{name}.report.json").read_text()) == json.loads(report.model_dump_json())
        assert (out / f"{name}.plan.yaml").is_file()
        assert report.verification is not None
        assert not report.verification.made_up
        assert {site.quantizer for site in report.sites if site.role not in ("embedding", "head")} == {"gptaq"}
    assert (out / "tokenizer.json").is_file()
    ids = np.arange(3, 19)[None]
    (tokens, logits), (expected_tokens, expected) = written(out, ids), written(bart, ids)
    np.testing.assert_array_equal(tokens[:, :4], expected_tokens[:, :4])
    length = min(logits[0].shape[1], expected[0].shape[1])
    error = np.linalg.norm(logits[0][:, :4] - expected[0][:, :4]) / np.linalg.norm(expected[0][:, :4])
    assert length >= 4
    assert error < 0.05


def test_weights_that_both_decoders_have_get_the_same_codes(bart, tmp_path):
    out = tmp_path / "out"
    qxcompiler.compile_folder(bart, "cpu-x86", out, calibration=bart / "text.txt", **QUICK)
    first, second = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(out / file).graph.initializer}
        for file in FILES[:2]
    )
    packed = {array.tobytes() for name, array in second.items() if ".packed" in name}
    assert len(packed) > 4
    # query, key and value of the cross-attention are fused differently, where the past brings keys and values
    assert len(packed & {array.tobytes() for name, array in first.items() if ".packed" in name}) > len(packed) // 2


def test_what_the_parts_see_is_what_the_original_writes(bart):
    ids = np.arange(3, 19)[None]
    sample = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    feeds = EncoderDecoder(bart).feeds(sample)
    assert list(feeds) == ["encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"]
    decoder = qxcompiler.session(bart / "decoder_model.onnx")
    whole = decoder.run(["logits"], feeds["decoder_model.onnx"])[0]
    tokens = feeds["decoder_model.onnx"]["input_ids"]
    assert tokens[0, 0] == SEQ2SEQ["decoder_start_token_id"]
    np.testing.assert_array_equal(whole[0, :-1].argmax(-1), tokens[0, 1:])
    step = feeds["decoder_with_past_model.onnx"]
    assert step["input_ids"].shape == (1, 1)
    follower = qxcompiler.session(bart / "decoder_with_past_model.onnx")
    np.testing.assert_allclose(follower.run(["logits"], step)[0][0, -1], whole[0, -1], atol=1e-4)


def test_the_command_compiles_a_folder(bart, tmp_path, qxc):
    command = ("compile", bart, "--target", "cpu-x86", "-o", tmp_path / "out", "--quantizer", "rtn")
    result = qxc(*command)
    assert result.returncode == 0, result.stderr
    assert [file.name for file in sorted((tmp_path / "out").glob("*.onnx"))] == FILES
    assert all(file in result.stdout for file in FILES)


@pytest.mark.parametrize("calibration", ["self", [{"input_ids": np.ones((1, 4), np.int64)}]])
def test_an_encoder_decoder_takes_a_file(bart, tmp_path, calibration):
    with pytest.raises(QxcError, match="--calibration: takes a file for the models of a folder"):
        qxcompiler.compile_folder(bart, "cpu-x86", tmp_path / "out", calibration=calibration, **QUICK)
    assert not (tmp_path / "out").exists()


def test_the_models_of_a_folder_write_for_themselves(tiny, tmp_path):
    shutil.copyfile(tiny.model, tiny.folder / "second.onnx")
    options = {"weights": "int4g16", "samples": 3, "length": 12}
    qxcompiler.compile_folder(tiny.folder, "cpu-x86", tmp_path / "out", **options)
    texts = {(tmp_path / "out" / f"{prefix}self-calibration.jsonl").read_text() for prefix in ("", "second.")}
    assert len(texts) == 1  # of the same model


def test_any_models_of_one_folder(tmp_path):
    """Without an encoder and a decoder, each is compiled by itself."""
    for name in ("left", "right"):
        b = Builder(seed=len(name))
        onnx.save(b.model({"x": (TensorProto.FLOAT, ["n", 64])}, [b.linear("x", 64, 96)]), tmp_path / f"{name}.onnx")
    reports = qxcompiler.compile_folder(tmp_path, "cpu-x86", tmp_path / "out", quantizer="rtn", weights="int4g32")
    assert sorted(reports) == ["left.onnx", "right.onnx"]
    for name in reports:
        assert qxcompiler.inspect(tmp_path / "out" / name).bits_per_weight == 4.5


def test_a_folder_written_into_itself_or_with_one_plan(tmp_path):
    b = Builder()
    onnx.save(b.model({"x": (TensorProto.FLOAT, ["n", 64])}, [b.linear("x", 64, 96)]), tmp_path / "one.onnx")
    with pytest.raises(UsageError, match="would be overwritten"):
        qxcompiler.compile_folder(tmp_path, "cpu-x86", tmp_path, quantizer="rtn")
    with pytest.raises(UsageError, match="plan"):
        qxcompiler.compile_folder(tmp_path, "cpu-x86", tmp_path / "out", plan=tmp_path / "plan.yaml")
    (tmp_path / "none").mkdir()
    with pytest.raises(ModelError, match=r"holds no \.onnx"):
        qxcompiler.compile_folder(tmp_path / "none", "cpu-x86", tmp_path / "out")
