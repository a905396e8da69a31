"""Contexts, chunks, batches, stop words, chats and look-ups: what they change is time and memory, not the text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluation_generate import PROMPT, TEXT, VOCABULARY, greedy, save_model
from tiny_onnx import save_bigram, save_onnx
from tiny_transformers import GROUPED
from tiny_transformers import VOCABULARY as WORDS
from tiny_transformers import save_model as save_transformer

import qxcompiler
from qxcompiler_runtime import Decoder, ModelError, ModelFile, TokenizerError, UsageError, generate, generate_batch
from qxcompiler_runtime.lookup import look_up

TEMPLATE = (
    "{{ bos_token }} {% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no') }}{% endif %}"
    "w4 {{ m.content }} {% endfor %}{% if add_generation_prompt %}w5{% endif %}"
)


def words(ids: list[int]) -> str:
    return " ".join(f"w{token}" for token in ids)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A model whose past grows, of 40 positions."""
    return save_model(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """A compiled model that writes its keys and values in place."""
    pytest.importorskip("optimum.exporters.onnx")
    folder = tmp_path_factory.mktemp("shared")
    save_transformer(folder / "hf", "AutoModelForCausalLM", "llama", GROUPED)
    exported = qxcompiler.export(folder / "hf", folder / "onnx")
    qxcompiler.compile(
        exported / "model.onnx", "cpu-x86", folder / "out", weights="int8g16", activations="a32", quantizer="rtn"
    )
    path = folder / "out" / "model.onnx"
    assert Decoder(ModelFile(path)).is_in_place
    return path


def lengths_of_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    lengths: list[int] = []
    run = Decoder._run
    monkeypatch.setattr(
        Decoder, "_run", lambda self, ids, **asked: (lengths.append(ids.shape[1]), run(self, ids, **asked))[1]
    )
    return lengths


# look-up


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(0, 6))
def test_what_followed_before(tokens: list[int], count: int) -> None:
    def searched() -> list[int]:
        for size in (3, 2, 1):
            for start in range(len(tokens) - size - 1, -1, -1):
                if tokens[start : start + size] == tokens[len(tokens) - size :]:
                    return tokens[start + size : start + size + count]
        return []

    assert look_up(tokens, count) == searched()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12), st.integers(1, 20), st.integers(1, 9))
def test_a_text_is_the_same_with_look_up(plain: Path, prompt: list[int], new: int, lookup: int) -> None:
    result = generate(plain, words(prompt), max_new_tokens=new, lookup=lookup)
    assert result.tokens == greedy(prompt, new)
    assert len(result.text.split()) == new and result.steps <= new


def test_repetitions_take_fewer_steps(tmp_path: Path, shared: Path) -> None:
    circle = np.roll(np.eye(VOCABULARY, dtype=np.float32), 1, axis=1)  # w0 w1 w2 ... w12 w0 ...
    path = save_bigram(tmp_path / "m.onnx", circle)
    slow, fast = (generate(path, "w0", max_new_tokens=60, lookup=count) for count in (0, 5))
    assert slow.tokens == fast.tokens == [number % VOCABULARY for number in range(1, 61)]
    assert (slow.steps, fast.steps) == (60, 13 + 8)  # once around, then 6 at a time
    prompt = words([7, 30, 5, 9] * 6)
    slow, fast = (generate(shared, prompt, max_new_tokens=30, lookup=count) for count in (0, 4))
    assert slow.tokens == fast.tokens


def test_look_up_stops_where_the_text_does(tmp_path: Path) -> None:
    circle = np.roll(np.eye(VOCABULARY, dtype=np.float32), 1, axis=1)
    path = save_bigram(tmp_path / "m.onnx", circle)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    prompt = words([*range(VOCABULARY), 0])
    result = generate(path, prompt, max_new_tokens=30, lookup=20)
    assert (result.tokens, result.stopped_by, result.steps) == ([1, 2, 3, 4, 5, 6, 7], "end_of_sequence", 2)
    assert generate(path, prompt, max_new_tokens=4, lookup=20).tokens == [1, 2, 3, 4]
    assert generate(path, prompt, lookup=20, stop=["w4"]).tokens == [1, 2, 3, 4]


@pytest.mark.parametrize("bad", [{"lookup": -1}, {"lookup": 3, "temperature": 0.5}])
def test_look_up_is_for_greedy_texts(plain: Path, bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"--lookup: .*give 0 or more, and --temperature 0"):
        generate(plain, TEXT, **bad)


# the decoder


@pytest.mark.parametrize("kind", ["plain", "shared"])
def test_a_rewound_decoder_is_where_it_was(kind: str, request: pytest.FixtureRequest) -> None:
    model = ModelFile(request.getfixturevalue(kind))
    ids = np.random.default_rng(1).integers(3, VOCABULARY, 9).tolist()
    straight, wound = Decoder(model), Decoder(model)
    straight.step([ids[:5]])
    wound.step([ids[:5]])
    each = wound.step_of_each([[8, 4, 4]])[0]
    wound.rewind(3)
    expected = [straight.step([[token]])[0] for token in ids[5:]]
    np.testing.assert_allclose(wound.step_of_each([ids[5:]])[0], expected, rtol=1e-4, atol=1e-5)
    assert each.shape == (3, len(expected[0]))


def test_a_past_of_something_else_is_not_rewound(tmp_path: Path) -> None:
    """A recurrent state has no axis for tokens."""
    text = """lm (int64[b, s] input_ids, float[b, 4, 4] past__state)
      => (float[b, s, v] logits, float[b, 4, 4] present__state)
    { logits = Gather(table, input_ids)  present__state = Identity(past__state) }"""
    decoder = Decoder(ModelFile(save_onnx(tmp_path / "m.onnx", text, table=np.eye(5, dtype=np.float32))))
    decoder.step([[1, 2, 3]])
    with pytest.raises(ModelError, match=r"keeps past.state .*, which cannot be shortened"):
        decoder.rewind(1)


@pytest.mark.parametrize("kind", ["plain", "shared"])
def test_a_long_prompt_is_read_in_chunks(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = request.getfixturevalue(kind)
    prompt = words(np.random.default_rng(2).integers(3, VOCABULARY, 19).tolist())
    whole = generate(path, prompt, max_new_tokens=8)
    monkeypatch.setattr("qxcompiler_runtime.decoder._CHUNK", 8)
    runs = lengths_of_runs(monkeypatch)
    assert generate(path, prompt, max_new_tokens=8).tokens == whole.tokens
    assert runs == [8, 8, 3, *[1] * 7]


def test_memory_is_taken_once(shared: Path) -> None:
    decoder = Decoder(ModelFile(shared), context=24)
    decoder.step([[5] * 10])
    first = {name: value.data_ptr() for name, value in decoder.past.items()}
    for token in range(14):
        decoder.step([[token]])
    assert {name: value.data_ptr() for name, value in decoder.past.items()} == first
    assert {value.shape()[2] for value in decoder.past.values()} == {24}
    with pytest.raises(UsageError, match="the context: is full: 25 tokens are more than its 24"):
        decoder.step([[1]])


# the context


def test_a_full_context_is_an_error(plain: Path) -> None:
    pieces: list[str] = []
    with pytest.raises(UsageError, match="--context: 8 tokens are full after 4 new ones: give a larger one"):
        generate(plain, TEXT, max_new_tokens=12, context=8, on_text=pieces.append)
    assert "".join(pieces) == words(greedy(PROMPT, 4))
    assert generate(plain, TEXT, max_new_tokens=4, context=8).tokens == greedy(PROMPT, 4)
    with pytest.raises(UsageError, match="prompt: has 5 tokens: give one of 1 to 4"):
        generate(plain, TEXT, context=4)


def test_a_context_beyond_the_model(tmp_path: Path) -> None:
    path = save_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 40}))
    for context in (41, 0):
        with pytest.raises(
            UsageError, match=f"--context: {context} is out of range: give one from 1 to the model's 40"
        ):
            generate(path, TEXT, context=context)
    assert generate(path, TEXT, context=40, max_new_tokens=3).tokens == greedy(PROMPT, 3)


# batches


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9), min_size=1, max_size=4),
    st.sampled_from([0.0, 1.5]),
)
def test_side_by_side_as_one_by_one(plain: Path, prompts: list[list[int]], temperature: float) -> None:
    options = {"max_new_tokens": 7, "temperature": temperature, "seed": 3, "stop": ["w3 w"]}
    together = generate_batch(plain, list(map(words, prompts)), **options)
    for prompt, result in zip(prompts, together, strict=True):
        alone = generate(plain, words(prompt), **options)
        assert (result.tokens, result.text, result.stopped_by) == (alone.tokens, alone.text, alone.stopped_by)
        assert result.prompt_tokens == len(prompt)


def test_padding_does_not_show(shared: Path) -> None:
    rows = [np.random.default_rng(seed).integers(3, WORDS, 3 + 4 * seed).tolist() for seed in range(3)]
    width = max(map(len, rows))
    model, padding = ModelFile(shared), [width - len(row) for row in rows]
    together = Decoder(model, padding=padding)
    alone = [Decoder(model) for _ in rows]
    found = together.step([[0] * missing + row for missing, row in zip(padding, rows, strict=True)])
    for _ in range(3):
        for decoder, row, logits in zip(alone, rows, found, strict=True):
            np.testing.assert_allclose(logits, decoder.step([row])[0], rtol=1e-4, atol=1e-5)
        rows = [[int(logits.argmax())] for logits in found]
        found = together.step(rows)


def test_a_model_without_a_mask_takes_prompts_of_one_length(tmp_path: Path) -> None:
    path = save_bigram(tmp_path / "m.onnx", np.roll(np.eye(VOCABULARY, dtype=np.float32), 1, axis=1))
    results = generate_batch(path, ["w1 w2", "w5 w4"], max_new_tokens=2)
    assert [result.tokens for result in results] == [[3, 4], [5, 6]]
    with pytest.raises(ModelError, match="takes no attention_mask: give one prompt, or prompts of equal length"):
        generate_batch(path, ["w1", "w5 w4"])
    with pytest.raises(UsageError, match="prompts: there are none"):
        generate_batch(path, [])


# where a text ends


@pytest.mark.parametrize("stop", ["w6 w7", "6 w", "w6", " w6 w7 w8"])
def test_stop_words_over_the_borders_of_tokens(tmp_path: Path, stop: str) -> None:
    path = save_bigram(tmp_path / "m.onnx", np.roll(np.eye(VOCABULARY, dtype=np.float32), 1, axis=1))
    pieces: list[str] = []
    result = generate(path, "w1", max_new_tokens=11, stop=["never", stop], on_text=pieces.append)
    whole = words([number % VOCABULARY for number in range(2, 13)])
    assert result.text == "".join(pieces) == whole[: whole.index(stop)]
    assert result.stopped_by == "stop" and len(pieces) > 2


def test_a_stop_word_that_does_not_come(plain: Path) -> None:
    pieces: list[str] = []
    result = generate(
        plain, TEXT, max_new_tokens=6, stop=["w99", words(greedy(PROMPT, 6)) + " w"], on_text=pieces.append
    )
    assert result.text == "".join(pieces) == words(greedy(PROMPT, 6))
    assert result.stopped_by == "max_new_tokens"
    with pytest.raises(UsageError, match="--stop: is empty"):
        generate(plain, TEXT, stop=[""])


# chats


@pytest.mark.parametrize("place", ["jinja", "settings", "named"])
def test_a_chat_is_what_the_template_makes(tmp_path: Path, place: str) -> None:
    path = save_model(tmp_path)
    configuration: dict[str, object] = {"bos_token": {"content": "w2"}}
    if place == "jinja":
        (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    elif place == "settings":
        configuration["chat_template"] = TEMPLATE
    else:
        named = [{"name": "tools", "template": "w9"}, {"name": "default", "template": TEMPLATE}]
        configuration["chat_template"] = named
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(configuration))
    result = generate(path, "w1 w7", chat=True, max_new_tokens=6)
    assert result.tokens == greedy([2, 4, 1, 7, 5], 6)
    assert [each.tokens for each in generate_batch(path, ["w1 w7"], chat=True, max_new_tokens=6)] == [result.tokens]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "there is no chat template: put"),
        ("{% for", "the chat template: cannot be used"),
        ("{{ raise_exception('roles alternate') }}", "the chat template: cannot be used .roles alternate."),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "the chat template: cannot be used .*unsafe"),
    ],
)
def test_templates_that_cannot_be_used(tmp_path: Path, template: str | None, said: str) -> None:
    path = save_model(tmp_path)
    if template is not None:
        (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(TokenizerError, match=said):
        generate(path, "w1", chat=True)


# the command


def test_the_command(plain: Path, qxc) -> None:
    text = words(greedy(PROMPT, 9))
    one = qxc("generate", plain, "--prompt", TEXT, "--max-new-tokens", 9, "--lookup", 3, "--context", 20)
    assert (one.returncode, one.stdout) == (0, f"{text}\n")
    assert "9 tokens" in one.stderr and "steps" in one.stderr
    cut = qxc("generate", plain, "--prompt", TEXT, "--max-new-tokens", 9, "--stop", text[8:11])
    assert cut.stdout == f"{text[: text.index(text[8:11])]}\n"
    several = qxc("generate", plain, "--prompt", TEXT, "--prompt", "w1", "--max-new-tokens", 9)
    assert several.stdout == f"> {TEXT}\n{text}\n> w1\n{words(greedy([1], 9))}\n"
    for options, said in (
        (("--prompt", "w1", "--prompt", "w2", "--lookup", 2), "--lookup: takes a single --prompt"),
        (("--prompt", "w1", "--chat"), "there is no chat template"),
        (("--prompt", TEXT, "--context", 7), "--context: 7 tokens are full after 3 new ones"),
    ):
        failed = qxc("generate", plain, *options)
        assert failed.returncode == 2
        assert said in failed.stderr
