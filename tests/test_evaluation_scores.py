from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr
from tiny_onnx import save_bigram, save_onnx, save_tokenizer

from qxcompiler.errors import CalibrationError, ModelError, UsageError
from qxcompiler.evaluation import LanguageEvaluation, SimilarityEvaluation, evaluate

VOCABULARY = 11
RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((VOCABULARY, VOCABULARY)).astype(np.float32) * 2
OTHER = TABLE + RNG.standard_normal(TABLE.shape).astype(np.float32)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"w{i}" for i in np.random.default_rng(1).integers(VOCABULARY, size=400)))
    return path


def tokens_of(text: Path) -> list[int]:
    return [int(word[1:]) for word in text.read_text().split()]


@pytest.mark.parametrize("length", [2, 20, 300])  # one target, and more than are taken to the softmax at once
def test_language_model_by_closed_form(tmp_path: Path, text: Path, length: int) -> None:
    model, reference = (
        save_bigram(tmp_path / "model" / "m.onnx", OTHER),
        save_bigram(tmp_path / "m.onnx", TABLE),
    )
    result = evaluate(model, text, windows=5, length=length, reference=reference)
    assert isinstance(result, LanguageEvaluation)

    tokens, stride = tokens_of(text), (400 - length) // 5
    count = min(5, 400 // length)
    pairs = [(tokens[w * stride + i], tokens[w * stride + i + 1]) for w in range(count) for i in range(length - 1)]
    now, following = np.array(pairs).T
    q, p = log_softmax(OTHER.astype(float), 1)[now], log_softmax(TABLE.astype(float), 1)[now]
    rows = np.arange(len(now))
    assert (result.windows, result.tokens) == (count, len(pairs))
    assert result.perplexity == pytest.approx(math.exp(-q[rows, following].mean()), rel=1e-5)
    assert result.reference_perplexity == pytest.approx(math.exp(-p[rows, following].mean()), rel=1e-5)
    assert result.kl_divergence == pytest.approx(rel_entr(np.exp(p), np.exp(q)).sum(1).mean(), rel=1e-4)
    assert result.top1_agreement == pytest.approx((p.argmax(1) == q.argmax(1)).mean())


def test_known_perplexities(tmp_path: Path, text: Path) -> None:
    uniform = evaluate(save_bigram(tmp_path / "m.onnx", TABLE * 0), text, windows=3, length=10)
    assert uniform.perplexity == pytest.approx(VOCABULARY)
    assert (uniform.reference_perplexity, uniform.kl_divergence, uniform.top1_agreement) == (None, None, None)
    text.write_text(" ".join(f"w{i % VOCABULARY}" for i in range(100)))
    sure = np.float32(50) * np.roll(np.eye(VOCABULARY, dtype=np.float32), 1, axis=1)
    assert evaluate(save_bigram(tmp_path / "m.onnx", sure), text, windows=3, length=10).perplexity == pytest.approx(1)


def test_a_model_equals_itself(tmp_path: Path, text: Path) -> None:
    path = save_bigram(tmp_path / "m.onnx", TABLE)
    result = evaluate(path, text, windows=3, length=10, reference=path)
    assert result.kl_divergence == pytest.approx(0, abs=1e-9)
    assert result.top1_agreement == 1
    assert result.perplexity == result.reference_perplexity
    assert json.loads(result.model_dump_json())["kind"] == "language"


def test_large_logits_do_not_overflow(tmp_path: Path, text: Path) -> None:
    plain = evaluate(save_bigram(tmp_path / "m.onnx", TABLE), text, windows=3, length=10)
    shifted = evaluate(save_bigram(tmp_path / "n.onnx", TABLE + np.float32(1e4)), text, windows=3, length=10)
    assert shifted.perplexity == pytest.approx(plain.perplexity, rel=1e-2)


def test_half_precision_logits(tmp_path: Path, text: Path) -> None:
    save_tokenizer(tmp_path, VOCABULARY)
    graph = "g (int64[b, s] input_ids) => (float16[b, s, v] logits) { logits = Gather(table, input_ids) }"
    half = save_onnx(tmp_path / "half.onnx", graph, table=TABLE.astype(np.float16))
    expected = evaluate(save_bigram(tmp_path / "m.onnx", TABLE), text, windows=3, length=10).perplexity
    assert evaluate(half, text, windows=3, length=10).perplexity == pytest.approx(expected, rel=1e-2)


def test_broken_language_models(tmp_path: Path, text: Path) -> None:
    good = save_bigram(tmp_path / "good.onnx", TABLE)
    nan = save_bigram(tmp_path / "nan.onnx", TABLE + np.float32("nan"))
    with pytest.raises(ModelError, match=r"nan.onnx: logits hold NaN"):
        evaluate(nan, text, windows=3, length=10)
    smaller = save_bigram(tmp_path / "smaller" / "m.onnx", TABLE[:, :7])
    with pytest.raises(ModelError, match=r"logits of shape \[1, 10, 7\], but \[1, 10, 11\] in the reference"):
        evaluate(smaller, text, windows=3, length=10, reference=good)
    short = save_bigram(tmp_path / "short.onnx", TABLE[:5])
    save_tokenizer(tmp_path, VOCABULARY)
    with pytest.raises(ModelError, match=r"short.onnx: failed to run .*: check that the samples fit") as error:
        evaluate(short, text, windows=3, length=10)
    assert "\n" not in str(error.value)
    with pytest.raises(CalibrationError, match="a --length of at least 2"):
        evaluate(good, text, windows=3, length=1)
    with pytest.raises(ModelError, match=r"missing.onnx: no such file"):
        evaluate(tmp_path / "missing.onnx", text)
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ModelError, match=r"text.onnx: "):
        evaluate(tmp_path / "text.onnx", text)


ENCODER = """encoder (int64[b, s] input_ids, int64[b, s] attention_mask)
  => (float[b, s, d] hidden, float[b, d] pooled)
{
  mask = Cast<to = 1>(attention_mask)
  hidden = Gather(table, input_ids)
  pooled = ReduceMean<axes = [1], keepdims = 0>(hidden)
}"""


def test_encoder_by_closed_form(tmp_path: Path, text: Path) -> None:
    save_tokenizer(tmp_path, VOCABULARY)
    model = save_onnx(tmp_path / "m.onnx", ENCODER, table=OTHER)
    reference = save_onnx(tmp_path / "ref.onnx", ENCODER, table=TABLE)
    result = evaluate(model, text, windows=4, length=10, reference=reference)
    assert isinstance(result, SimilarityEvaluation)

    tokens, stride = np.array(tokens_of(text)), (400 - 10) // 4
    y, y_ref = (np.stack([t[tokens[w * stride : w * stride + 10]] for w in range(4)]) for t in (OTHER, TABLE))
    pairs = {"hidden": (y, y_ref), "pooled": (y.mean(1), y_ref.mean(1))}
    assert set(result.outputs) == set(pairs)
    for name, (a, b) in pairs.items():
        cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
        assert result.outputs[name].cosine_similarity == pytest.approx(cosine.mean(), rel=1e-5)
        assert result.outputs[name].relative_error == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b), rel=1e-5)
    assert result.cosine_similarity == pytest.approx(np.mean([o.cosine_similarity for o in result.outputs.values()]))
    assert result.relative_error == pytest.approx(np.mean([o.relative_error for o in result.outputs.values()]))
    assert json.loads(result.model_dump_json())["windows"] == 4


def test_images_from_arrays(tmp_path: Path) -> None:
    graph = "vision (float[b, 3, 4] pixels) => (float[b, 3, n] y) { y = MatMul(pixels, w) }"
    w = RNG.standard_normal((4, 5)).astype(np.float32)
    model = save_onnx(tmp_path / "m.onnx", graph, w=w * 3)  # same directions, three times as long
    reference = save_onnx(tmp_path / "ref.onnx", graph, w=w)
    np.savez(tmp_path / "images.npz", pixels=RNG.standard_normal((6, 3, 4)).astype(np.float32))
    result = evaluate(model, tmp_path / "images.npz", reference=reference)
    assert result.windows == 6
    assert result.cosine_similarity == pytest.approx(1)
    assert result.relative_error == pytest.approx(2)


def test_broken_encoders(tmp_path: Path, text: Path) -> None:
    save_tokenizer(tmp_path, VOCABULARY)
    model = save_onnx(tmp_path / "m.onnx", ENCODER, table=TABLE)
    with pytest.raises(UsageError, match=r"m.onnx: has no logits .*: name a model with --reference"):
        evaluate(model, text, windows=2, length=10)
    renamed = save_onnx(tmp_path / "renamed.onnx", ENCODER.replace("pooled", "pool"), table=TABLE)
    with pytest.raises(ModelError, match=r"m.onnx: has no output pool: give a reference other than .*renamed.onnx"):
        evaluate(model, text, windows=2, length=10, reference=renamed)
    narrow = save_onnx(tmp_path / "narrow.onnx", ENCODER, table=TABLE[:, :3])
    with pytest.raises(ModelError, match=r"output hidden has another shape .* \(\[1, 10, 11\], not \[1, 10, 3\]\)"):
        evaluate(model, text, windows=2, length=10, reference=narrow)
    nan = save_onnx(tmp_path / "nan.onnx", ENCODER, table=TABLE + np.float32("inf"))
    with pytest.raises(ModelError, match=r"output hidden holds NaN or infinity"):
        evaluate(nan, text, windows=2, length=10, reference=model)


def test_windows_are_tracked(tmp_path: Path, text: Path) -> None:
    seen = []

    def track(items, description):
        for item in items:
            seen.append(description)
            yield item

    evaluate(save_bigram(tmp_path / "m.onnx", TABLE), text, windows=3, length=10, track=track)
    assert seen == ["evaluation"] * 3


def test_masked_logits(tmp_path: Path, text: Path) -> None:
    """-inf at the same places in both: no NaN in the divergence."""
    text.write_text(" ".join(f"w{i % 5}" for i in range(100)))
    masked, other = TABLE.copy(), OTHER.copy()
    masked[:, 7:] = other[:, 7:] = -np.inf
    model, reference = save_bigram(tmp_path / "m" / "m.onnx", other), save_bigram(tmp_path / "m.onnx", masked)
    result = evaluate(model, text, windows=3, length=10, reference=reference)
    cut = evaluate(
        save_bigram(tmp_path / "a" / "m.onnx", other[:, :7]), text, windows=3, length=10,
        reference=save_bigram(tmp_path / "b" / "m.onnx", masked[:, :7]),
    )  # fmt: skip
    assert result.kl_divergence == pytest.approx(cut.kl_divergence, rel=1e-6)
    assert result.perplexity == pytest.approx(cut.perplexity)
    text.write_text(" ".join(f"w{i % VOCABULARY}" for i in range(100)))
    with pytest.raises(ModelError, match=r"no chance at all \(-inf\): check the text"):
        evaluate(model, text, windows=3, length=10, reference=reference)


def test_masked_outputs(tmp_path: Path) -> None:
    graph = "g (float[b, 3] x) => (float[b, 3, n] y) { z = Unsqueeze(x, axes)  y = Add(z, w) }"
    w = np.where(np.eye(3, 8) > 0, -np.inf, 0).astype(np.float32)
    model = save_onnx(tmp_path / "m.onnx", graph, w=w, axes=np.array([2]))
    np.savez(tmp_path / "x.npz", x=np.ones((4, 3), np.float32))
    result = evaluate(model, tmp_path / "x.npz", reference=model)
    assert (result.cosine_similarity, result.relative_error, result.windows) == (1, 0, 4)


def test_a_language_model_of_a_fixed_batch(tmp_path: Path, text: Path) -> None:
    graph = "bigram (int64[3, s] input_ids) => (float[3, s, v] logits) { logits = Gather(table, input_ids) }"
    save_tokenizer(tmp_path, VOCABULARY)
    fixed = save_onnx(tmp_path / "fixed.onnx", graph, table=TABLE)
    free = save_bigram(tmp_path / "m.onnx", TABLE)
    result = evaluate(fixed, text, windows=2, length=10)
    expected = evaluate(free, text, windows=6, length=10)
    assert (result.windows, result.tokens) == (6, 54)
    assert result.perplexity == pytest.approx(expected.perplexity)
    with pytest.raises(UsageError, match=r"takes the samples in 2 runs, .*fixed.onnx in 1"):
        evaluate(fixed, text, windows=2, length=100, reference=free)


def test_no_more_windows_than_the_text_has(tmp_path: Path, text: Path) -> None:
    assert evaluate(save_bigram(tmp_path / "m.onnx", TABLE), text, windows=1_000_000, length=10).windows == 40


def test_the_default_length_is_what_both_models_take(tmp_path: Path, text: Path) -> None:
    model, reference = save_bigram(tmp_path / "a" / "m.onnx", TABLE), save_bigram(tmp_path / "b" / "m.onnx", OTHER)
    (tmp_path / "b" / "config.json").write_text(json.dumps({"n_positions": 20}))
    result = evaluate(model, text, windows=2, reference=reference)
    assert result.tokens == 2 * 19


def test_samples_from_python(tmp_path: Path) -> None:
    graph = "vision (float[b, 4] x) => (float[b, n] y) { y = MatMul(x, w) }"
    model = save_onnx(tmp_path / "m.onnx", graph, w=RNG.standard_normal((4, 30)).astype(np.float32))
    result = evaluate(model, ({"x": np.ones((2, 4))} for _ in range(5)), windows=3, reference=model)
    assert (result.windows, result.relative_error) == (3, 0)


def test_inputs_that_are_not_tensors(tmp_path: Path) -> None:
    graph = "g (seq(float[n]) x) => (float[m] y) { y = ConcatFromSequence<axis = 0>(x) }"
    path = save_onnx(tmp_path / "m.onnx", graph)
    with pytest.raises(
        ModelError, match=r"input x has type seq\(tensor\(float\)\): use a model whose inputs are tensors"
    ):
        evaluate(path, [{"x": np.ones(3)}], reference=path)


def test_strings(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "m.onnx", "g (string[n] x) => (string[n] y) { y = Identity(x) }")
    (tmp_path / "text.txt").write_text("words")
    with pytest.raises(CalibrationError, match=r"takes no token ids, only x string \[n\]: give a .npz file"):
        evaluate(path, tmp_path / "text.txt", reference=path)
    np.savez(tmp_path / "x.npz", x=np.array(["a", "b"]))
    result = evaluate(path, tmp_path / "x.npz", reference=path)
    assert (result.agreement, result.cosine_similarity) == (1, None)
