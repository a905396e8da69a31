"""The main job on real models: SmolLM2 in 3 bits, MiniLM in 4."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import onnxruntime
import pytest
import torch

import qxcompiler
from qxcompiler.calibration.samples import input_specs, load_samples
from qxcompiler.derivatives.executor import TorchModel
from qxcompiler.graph import find_sites, load_model, normalize, raise_opset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> tuple[Path, Path]:
    """Calibration and evaluation text: every second topic of the language reference each."""
    folder = tmp_path_factory.mktemp("texts")
    names = sorted(topics)
    files = folder / "calibration.txt", folder / "evaluation.txt"
    for start, file in enumerate(files):
        file.write_text("\n\n".join(topics[name] for name in names[start::2]), encoding="utf-8")
    return files


@pytest.fixture(scope="module")
def compiled(smollm2, texts, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("compiled")
    qxcompiler.compile(
        smollm2 / "model.onnx", "cpu-x86", out, weights="lut3g128", calibration=texts[0], samples=8, length=256
    )
    return out


def test_smollm2_is_small_and_still_a_language_model(smollm2, compiled, texts):
    report = json.loads((compiled / "report.json").read_text())
    linear = [site for site in report["sites"] if site["role"] not in ("head", "embedding")]
    assert len(linear) == 30 * 7
    assert {site["scheme"] for site in linear} == {"lut3g128/a16"}
    assert sum(path.stat().st_size for path in compiled.glob("model.onnx*")) == report["bytes_after"] < 80e6
    figures = qxcompiler.evaluate(
        compiled / "model.onnx", texts[1], windows=4, length=256, reference=smollm2 / "model.onnx"
    )
    assert figures.perplexity < 1.6 * figures.reference_perplexity
    assert figures.top1_agreement > 0.6


def test_smollm2_gives_the_same_logits_without_the_library(compiled):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    stock = onnxruntime.InferenceSession(str(compiled / "model.onnx"), options, providers=["CPUExecutionProvider"])
    packed = qxcompiler.session(compiled / "model.onnx")
    draws = np.random.default_rng(0)
    past = {value.name: np.zeros((1, 3, 0, 64), np.float32) for value in stock.get_inputs() if "past" in value.name}
    errors, agree = [], []
    for _ in range(8):  # of random tokens one in ten is several times as far off as the others
        ids = draws.integers(0, 49152, (1, 24))
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(24)[None]}
        a, b = (session.run(["logits"], feeds | past)[0] for session in (packed, stock))
        errors.append(np.linalg.norm(a - b) / np.linalg.norm(b))
        agree.append(a.argmax(-1) == b.argmax(-1))
    assert np.median(errors) <= 5e-4
    assert max(errors) <= 3e-3
    assert np.mean(agree) >= 0.98


def test_smollm2_writes_english(compiled):
    """On several beginnings: the original itself goes on from the first with a date and a time."""
    beginnings = [
        "The capital of France is", "Once upon a time there was", "A list is a sequence of", "Water boils when",
        "My favourite book is about", "In the morning she",
    ]  # fmt: skip
    results = [qxcompiler.generate(compiled / "model.onnx", each, max_new_tokens=24) for each in beginnings]
    assert all(result.uses_past for result in results)
    assert np.median([len(set(result.tokens)) for result in results]) > 10
    text = "".join(result.text for result in results)
    assert sum(character.isalpha() or character in " ,.'\n" for character in text) > 0.8 * len(text)


def test_minilm_in_four_bits_means_the_same(minilm, texts, tmp_path):
    out = tmp_path / "out"
    qxcompiler.compile(
        minilm / "model.onnx", "cpu-x86", out, weights="int4g32a", calibration=texts[0], samples=16, length=128
    )
    figures = qxcompiler.evaluate(out / "model.onnx", texts[1], windows=8, length=128, reference=minilm / "model.onnx")
    assert figures.kind == "similarity"
    assert figures.cosine_similarity > 0.97


@pytest.mark.parametrize(("name", "output"), [("smollm2", "logits"), ("minilm", "last_hidden_state")])
def test_a_real_model_computes_in_torch_what_it_does_in_onnxruntime(name, output, texts, request):
    path = request.getfixturevalue(name) / "model.onnx"
    model = load_model(path)
    normalize(model)
    raise_opset(model, 18)
    (sample,) = load_samples(texts[0], input_specs(model), path, samples=1, length=48)
    with torch.no_grad():
        y = TorchModel(model, find_sites(model), output, torch.device("cpu"))(sample, lambda site: site.weight.matrix())
    (y_ref,) = qxcompiler.session(path).run([output], sample)
    assert np.linalg.norm(y.numpy() - y_ref) < 1e-4 * np.linalg.norm(y_ref)


def test_minilm_tuned_comes_nearer_to_the_original(minilm, texts, tmp_path):
    options = {"weights": "lut2g64", "embedding": "float", "samples": 32, "length": 64, "calibration": texts[0]}
    similarities = []
    for tune in (0, 160):
        out = tmp_path / str(tune)
        report = qxcompiler.compile(minilm / "model.onnx", "cpu-x86", out, tune=tune, **options)
        figures = qxcompiler.evaluate(
            out / "model.onnx", texts[1], windows=200, length=64, reference=minilm / "model.onnx"
        )
        similarities.append(figures.cosine_similarity)
    assert report.tuning.loss_after < 0.95 * report.tuning.loss_before
    assert similarities[1] > similarities[0]  # on text that was not learned from
