"""Text that a language model writes to be calibrated on."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tokenizers
from scipy.special import softmax
from scipy.stats import chisquare
from test_config import contents, written
from tiny_onnx import save_onnx, save_tokenizer

import qxcompiler
from qxcompiler.errors import CalibrationError, ModelError, QxcError, TokenizerError
from qxcompiler.evaluation.running import Runner
from qxcompiler.evaluation.writing import can_write, write_texts
from qxcompiler.progress import silent
from qxcompiler_runtime.decoder import Decoder

VOCABULARY = 7
TABLE = np.random.default_rng(5).standard_normal((VOCABULARY, VOCABULARY)).astype(np.float32)
TABLE[:, -1] = -30  # the word that ends a text comes where the test puts it
# The next token by the current one; the past is the tokens.
BIGRAM = """lm (int64[b, s] input_ids, float[b, 1, p, 1] past__k)
  => (float[b, s, v] logits, float[b, 1, t, 1] present__k)
{
  axes = Constant<value = int64[2] {1, 3}>()  numbers = Cast<to = 1>(input_ids)  key = Unsqueeze(numbers, axes)
  present__k = Concat<axis = 2>(past__k, key)  logits = Gather(table, input_ids)
}"""
OPTIONS = {"weights": "int4g16", "samples": 3, "length": 12, "seed": 7}


def bigram(folder: Path, table: np.ndarray = TABLE) -> Path:
    save_tokenizer(folder, len(table))
    return save_onnx(folder / "model.onnx", BIGRAM, table=table)


def ids(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split()]


def test_words_are_drawn_from_the_predictions(tmp_path: Path) -> None:
    texts = write_texts(bigram(tmp_path), texts=20, length=400, seed=0, track=silent)
    assert [len(ids(text)) for text in texts] == [400] * 20
    followers: dict[int, Counter[int]] = {}
    for text in texts:
        for one, other in pairwise(ids(text)[8:]):  # after the opening
            followers.setdefault(one, Counter())[other] += 1
    for word, counts in followers.items():
        chances = softmax(TABLE[word, :-1].astype(float))
        seen = np.array([counts[other] for other in range(VOCABULARY - 1)])
        assert seen.sum() > 500
        assert chisquare(seen, chances * seen.sum()).pvalue > 1e-4


def test_the_same_seed_writes_the_same(tmp_path: Path) -> None:
    model = bigram(tmp_path)
    one, again, other = (write_texts(model, texts=3, length=30, seed=seed, track=silent) for seed in (1, 1, 2))
    assert one == again != other


def test_a_conversation_is_written_as_the_template_says(tmp_path: Path) -> None:
    """A user's turn ends with w6, which ends the answer too; then another text begins."""
    table = np.full((VOCABULARY, VOCABULARY), -30, np.float32)
    for word, follower in ((1, 2), (2, 6), (3, 4), (4, 6), (6, 0), (0, 5), (5, 0)):
        table[word, follower] = 30
    model = bigram(tmp_path, table)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 6}))
    template = "{% for m in messages %}w1 {{ m.content }} w6 {% endfor %}{% if add_generation_prompt %}w3{% endif %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    conversations = [text for text in write_texts(model, texts=6, length=12, seed=0, track=silent) if text[:2] == "w1"]
    assert len(conversations) >= 2
    assert all(ids(text)[:6] == [1, 2, 6, 3, 4, 6] for text in conversations)


@pytest.mark.parametrize(
    "template",
    [
        "{% for",
        "{{ raise_exception('no') }}",
        "w1 {{ messages[0].content }} {{ ''.__class__.__mro__[1].__subclasses__() }}",
        "no words",
        "{{ 1 // 0 }}",
    ],
)
def test_a_template_that_cannot_be_used_is_left_out(tmp_path: Path, template: str) -> None:
    model = bigram(tmp_path)
    plain = write_texts(model, texts=4, length=10, seed=0, track=silent)
    (tmp_path / "chat_template.jinja").write_text(template)
    assert write_texts(model, texts=4, length=10, seed=0, track=silent) == plain


def test_texts_side_by_side_are_the_single_ones(tiny) -> None:
    rows = np.random.default_rng(0).integers(0, 60, (3, 9)).tolist()
    runner = Runner(tiny.model)
    together = Decoder(runner)
    alone = [Decoder(runner) for _ in rows]
    for position in range(9):
        logits = together.step([[row[position]] for row in rows])
        for decoder, row, expected in zip(alone, rows, logits, strict=True):
            np.testing.assert_allclose(decoder.step([[row[position]]])[0], expected, rtol=1e-4, atol=1e-5)


def test_a_tokenizer_without_tokens_for_the_beginnings(tmp_path: Path) -> None:
    """The texts begin with random tokens then."""
    model = bigram(tmp_path)
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE({f"{'語言文字學書人'[i]}": i for i in range(VOCABULARY)}, [])
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = write_texts(model, texts=3, length=9, seed=0, track=silent)
    assert [len("".join(text.split())) for text in texts] == [9] * 3


def test_a_compile_on_what_the_model_writes(tiny, tmp_path, qxc) -> None:
    once, again, default, mixed = (tmp_path / name for name in ("once", "again", "default", "mixed"))
    report = qxcompiler.compile(tiny.model, "cpu-x86", once, calibration="self", **OPTIONS)
    assert report.samples == 3
    assert any("text that the model wrote (self-calibration.jsonl)" in warning for warning in report.warnings)
    assert all(site.quantizer == "gptaq" for site in report.sites if site.role in ("query", "gate", "down"))
    texts = [json.loads(line)["text"] for line in (once / "self-calibration.jsonl").read_text().splitlines()]
    assert len(texts) == 6  # 3, 2 held back, and one more
    assert written(once)["calibration"] == "self"
    assert qxc("compile", "--config", once / "compile.yaml", "-o", again).returncode == 0
    assert contents(once) == contents(again)
    qxcompiler.compile(tiny.model, "cpu-x86", default, **OPTIONS)  # there is nothing else to calibrate on
    assert contents(default) == contents(once)
    kept = qxcompiler.compile(
        tiny.model, "cpu-x86", tmp_path / "kept", calibration=once / "self-calibration.jsonl", **OPTIONS
    )
    assert (tmp_path / "kept" / "model.onnx").read_bytes() == (once / "model.onnx").read_bytes()
    assert not any("the model wrote" in warning for warning in kept.warnings)
    qxcompiler.compile(tiny.model, "cpu-x86", mixed, calibration=["self", tiny.calibration], **OPTIONS)
    assert written(mixed)["calibration"] == ["self", "../tiny/calibration.txt"]


def test_what_was_written_is_not_written_twice(tiny, tmp_path, monkeypatch) -> None:
    """After an interrupt: what is in the work folder is taken."""
    out = tmp_path / "out"

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr("qxcompiler.compiler.WorkFolder.keep", killed)
        qxcompiler.compile(tiny.model, "cpu-x86", out, calibration="self", **OPTIONS)
    with monkeypatch.context() as context:
        context.setattr("qxcompiler.gathering.write_texts", killed)
        qxcompiler.compile(tiny.model, "cpu-x86", out, calibration="self", **OPTIONS)
    assert (out / "self-calibration.jsonl").exists()


def test_models_that_do_not_write(tiny, tmp_path) -> None:
    def refused(error: type[QxcError], said: str, model: object, **options: object) -> None:
        with pytest.raises(error, match=said):
            qxcompiler.compile(model, "cpu-x86", tmp_path / "out", **OPTIONS, **options)

    refused(
        QxcError, "--calibration self: is for a model with its tokenizer", onnx.load(tiny.model), calibration="self"
    )
    refused(QxcError, "--quantizer gptaq: needs samples", onnx.load(tiny.model))
    (tiny.folder / "tokenizer.json").rename(tiny.folder / "elsewhere.json")
    refused(TokenizerError, "tokenizer.json: no such file", tiny.model, calibration="self")
    refused(QxcError, "--quantizer gptaq: needs samples", tiny.model)


def free(_: onnx.ModelProto) -> None:
    """As it is."""


def fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def fixed_length(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 8


def fixed_past(model: onnx.ModelProto) -> None:
    model.graph.input[1].type.tensor_type.shape.dim[2].dim_value = 8


def of_no_rank(model: onnx.ModelProto) -> None:
    del model.graph.input[0].type.tensor_type.shape.dim[:]


def another_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info("encoder_hidden_states", 1, ["b", "n", 4]))


@pytest.mark.parametrize("change", [free, fixed_batch, fixed_length, fixed_past, of_no_rank, another_input])
def test_models_that_cannot_write_are_known(tmp_path: Path, change) -> None:
    path = bigram(tmp_path)
    model = onnx.load(path)
    change(model)
    assert can_write(ir.from_proto(model), path) == (change is free)


def test_what_is_wrong_is_said_before_it_writes(tiny, tmp_path, monkeypatch) -> None:
    def written(*_: object, **__: object) -> None:
        raise AssertionError("it wrote")

    monkeypatch.setattr("qxcompiler.gathering.write_texts", written)
    with pytest.raises(CalibrationError, match="no-such-file"):
        qxcompiler.compile(tiny.model, "cpu-x86", tmp_path / "out", calibration=["self", "no-such-file.txt"], **OPTIONS)
    (tiny.folder / "config.json").write_text(json.dumps({"max_position_embeddings": 10}))
    with pytest.raises(QxcError, match="--length 12: is more than the model's context, 10"):
        qxcompiler.compile(tiny.model, "cpu-x86", tmp_path / "out", calibration="self", **OPTIONS)


def test_a_model_without_a_past_does_not_write(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, VOCABULARY)
    graph = "lm (int64[b, s] input_ids) => (float[b, s, v] logits) { logits = Gather(table, input_ids) }"
    with pytest.raises(ModelError, match="keeps no past"):
        write_texts(save_onnx(tmp_path / "model.onnx", graph, table=TABLE), texts=1, length=5, seed=0, track=silent)


def test_predictions_that_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="logits hold NaN"):
        write_texts(bigram(tmp_path, np.full_like(TABLE, np.nan)), texts=1, length=5, seed=0, track=silent)
