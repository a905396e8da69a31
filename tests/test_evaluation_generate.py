from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare
from tiny_onnx import save_bigram, save_onnx, save_tokenizer

from qxcompiler.errors import ModelError, UsageError
from qxcompiler_runtime import bench, generate
from qxcompiler_runtime.decoder import Decoder

VOCABULARY, WIDTH, POSITIONS = 13, 6, 40
RNG = np.random.default_rng(3)
EMBEDDING = RNG.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
POSITION = RNG.standard_normal((POSITIONS, WIDTH)).astype(np.float32)
HEAD = RNG.standard_normal((WIDTH, VOCABULARY)).astype(np.float32)

# Logits by the sum of (embedding + position) over all tokens so far: wrong if past, positions or mask are.
GRAPH = """lm (int64[b, s] input_ids, int64[b, t] attention_mask, int64[b, s] position_ids,
      float[b, 1, p, 6] PAST)
  => (float[b, s, v] logits, float[b, 1, t, 6] PRESENT)
{
  words = Gather(embedding, input_ids)  places = Gather(position, position_ids)  x = Add(words, places)
  one = Constant<value = int64[1] {1}>()  key = Unsqueeze(x, one)  PRESENT = Concat<axis = 2>(PAST, key)
  two = Constant<value = int64[1] {2}>()  most = Constant<value = int64[1] {1000000}>()
  axis = Constant<value_int = 1>()
  float_mask = Cast<to = 1>(attention_mask)  wide_mask = Unsqueeze(float_mask, two)
  all = Squeeze(PRESENT, one)  masked = Mul(all, wide_mask)  sums = CumSum(masked, axis)
  size = Shape<start = 1, end = 2>(input_ids)  begin = Neg(size)  last = Slice(sums, begin, most, one)
  logits = MatMul(last, head)
}"""


def save_model(folder: Path, past: str = "past_key_values.0.key", present: str = "present.0.key") -> Path:
    save_tokenizer(folder, VOCABULARY)
    text = GRAPH.replace("PAST", past.replace(".", "__")).replace("PRESENT", present.replace(".", "__"))
    return save_onnx(folder / "model.onnx", text, embedding=EMBEDDING, position=POSITION, head=HEAD)


def logits_of(tokens: list[int]) -> np.ndarray:
    return (EMBEDDING[tokens] + POSITION[: len(tokens)]).sum(0) @ HEAD


def greedy(tokens: list[int], count: int) -> list[int]:
    tokens = list(tokens)
    for _ in range(count):
        tokens.append(int(logits_of(tokens).argmax()))
    return tokens[-count:]


PROMPT = [3, 1, 4, 1, 5]
TEXT = " ".join(f"w{token}" for token in PROMPT)


@pytest.mark.parametrize(
    ("past", "present"),
    [("past_key_values.0.key", "present.0.key"), ("past_k", "present_state")],  # by name, by order
)
def test_greedy_with_past(tmp_path: Path, past: str, present: str) -> None:
    result = generate(save_model(tmp_path, past, present), TEXT, max_new_tokens=12)
    assert result.tokens == greedy(PROMPT, 12)
    assert len(set(result.tokens)) > 3
    assert result.text == " ".join(f"w{token}" for token in result.tokens)
    assert (result.prompt_tokens, result.stopped_by, result.uses_past) == (5, "max_new_tokens", True)
    assert result.tokens_per_second == pytest.approx(11 / result.decode_seconds)
    assert result.prefill_seconds > 0


def test_several_layers_are_matched_by_name(tmp_path: Path) -> None:
    """Two caches of different width, whose outputs come in another order than the inputs."""
    save_tokenizer(tmp_path, VOCABULARY)
    graph = """lm (int64[b, s] input_ids, float[b, 1, p, 6] past__a, float[b, 1, p, 2] past__b)
      => (float[b, s, v] logits, float[b, 1, t, 2] present__b, float[b, 1, t, 6] present__a)
    {
      one = Constant<value = int64[1] {1}>()
      wide = Gather(embedding, input_ids)  narrow = Gather(small, input_ids)
      a = Unsqueeze(wide, one)  b = Unsqueeze(narrow, one)
      present__a = Concat<axis = 2>(past__a, a)  present__b = Concat<axis = 2>(past__b, b)
      logits = MatMul(wide, head)
    }"""
    path = save_onnx(tmp_path / "m.onnx", graph, embedding=EMBEDDING, small=EMBEDDING[:, :2].copy(), head=HEAD)
    assert len(generate(path, TEXT, max_new_tokens=5).tokens) == 5


def test_without_past_the_whole_text_is_run_again(tmp_path: Path) -> None:
    table = RNG.standard_normal((VOCABULARY, VOCABULARY)).astype(np.float32)
    result = generate(save_bigram(tmp_path / "m.onnx", table), TEXT, max_new_tokens=6)
    expected = [PROMPT[-1]]
    for _ in range(6):
        expected.append(int(table[expected[-1]].argmax()))
    assert result.tokens == expected[1:]
    assert result.uses_past is False


@pytest.mark.parametrize(("name", "as_list"), [("generation_config.json", True), ("config.json", False)])
def test_stops_at_the_end_of_sequence(tmp_path: Path, name: str, as_list: bool) -> None:
    path = save_model(tmp_path)
    end = greedy(PROMPT, 12)[4]
    (tmp_path / name).write_text(json.dumps({"eos_token_id": [end, 99] if as_list else end}))
    result = generate(path, TEXT, max_new_tokens=12)
    expected = greedy(PROMPT, 12)
    assert result.tokens == expected[: expected.index(end) + 1]
    assert result.stopped_by == "end_of_sequence"


def test_stops_at_the_last_position(tmp_path: Path) -> None:
    path = save_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 8}))
    result = generate(path, TEXT, max_new_tokens=12)
    assert result.tokens == greedy(PROMPT, 4)  # positions 5, 6, 7 are run, which gives one token more
    assert result.stopped_by == "context_limit"
    with pytest.raises(UsageError, match=r"has 9 tokens: give one of 1 to 8"):
        generate(path, " ".join(["w1"] * 9))


def test_one_token_has_no_rate(tmp_path: Path) -> None:
    result = generate(save_model(tmp_path), TEXT, max_new_tokens=1)
    assert (result.tokens, result.tokens_per_second, result.decode_seconds) == (greedy(PROMPT, 1), None, 0)


def test_text_is_streamed(tmp_path: Path) -> None:
    pieces: list[str] = []
    result = generate(save_model(tmp_path), TEXT, max_new_tokens=6, on_text=pieces.append)
    assert len(pieces) == 6
    assert "".join(pieces) == result.text


def test_sampling_follows_the_softmax(tmp_path: Path) -> None:
    """Frequencies of many draws from one distribution, by a chi-squared test."""
    row = np.full(VOCABULARY, -1e9, np.float32)
    row[:4] = np.log([8, 4, 2, 2])
    path = save_bigram(tmp_path / "m.onnx", np.tile(row, (VOCABULARY, 1)))
    drawn = generate(path, "w5", max_new_tokens=600, temperature=2, seed=1).tokens
    expected = np.sqrt([8, 4, 2, 2])
    counts = np.bincount(drawn, minlength=4)
    assert len(counts) == 4
    assert chisquare(counts, 600 * expected / expected.sum()).pvalue > 1e-3

    # The nucleus of 0.7 is the two most likely: 8/16 is not enough.
    assert set(generate(path, "w5", max_new_tokens=100, temperature=1, top_p=0.7).tokens) == {0, 1}
    assert set(generate(path, "w5", max_new_tokens=100, temperature=1, top_p=0.5).tokens) == {0}


def test_equal_seeds_write_equal_texts(tmp_path: Path) -> None:
    path = save_model(tmp_path)
    first, again, other = (generate(path, TEXT, max_new_tokens=20, temperature=5, seed=s).tokens for s in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("temperature", [1e-40, 1e-320, 1e300])
def test_any_temperature(tmp_path: Path, temperature: float) -> None:
    tokens = generate(save_model(tmp_path), TEXT, max_new_tokens=6, temperature=temperature).tokens
    assert tokens == greedy(PROMPT, 6) if temperature < 1 else len(tokens) == 6


@pytest.mark.parametrize("end", [{"a": 1}, "2", [[2]], [None], 1.5, True, ["2"]])
def test_an_end_of_sequence_that_is_no_token(tmp_path: Path, end: object) -> None:
    path = save_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": end}))
    with pytest.raises(UsageError, match=r"config.json: eos_token_id is .*, not a token"):
        generate(path, TEXT)


@pytest.mark.parametrize("config", ["[" * 100_000, '{"eos_token_id": ' + "9" * 5000 + "}", '{"n_positions": "many"}'])
def test_a_configuration_of_nonsense(tmp_path: Path, config: str) -> None:
    path = save_model(tmp_path)
    (tmp_path / "config.json").write_text(config)
    assert generate(path, TEXT, max_new_tokens=3).tokens == greedy(PROMPT, 3)


@pytest.mark.parametrize("seed", [99999999999999999999, 2**64, -1])
def test_seeds_out_of_range(tmp_path: Path, seed: int) -> None:
    with pytest.raises(UsageError, match=rf"seed: {seed} is out of range: give one from 0"):
        generate(save_model(tmp_path), TEXT, seed=seed)
    assert generate(save_model(tmp_path), TEXT, max_new_tokens=1, seed=2**64 - 1).tokens


def test_logits_that_are_no_numbers(tmp_path: Path) -> None:
    for value in (np.nan, np.inf, -np.inf):
        path = save_bigram(tmp_path / "m.onnx", np.full((VOCABULARY, VOCABULARY), value, np.float32))
        with pytest.raises(ModelError, match=r"m.onnx: logits hold NaN, or nothing finite"):
            generate(path, "w5", temperature=1)
    row = np.full(VOCABULARY, -np.inf, np.float32)  # masked tokens are fine
    row[3] = 0
    assert generate(save_bigram(tmp_path / "m.onnx", np.tile(row, (VOCABULARY, 1))), "w5", max_new_tokens=2).tokens == [
        3,
        3,
    ]


@pytest.mark.parametrize(
    "bad",
    [
        {"max_new_tokens": 0}, {"temperature": -1}, {"temperature": float("nan")}, {"temperature": float("inf")},
        {"top_p": 0}, {"top_p": 1.5},
    ],
)  # fmt: skip
def test_arguments_out_of_range(tmp_path: Path, bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        generate(save_model(tmp_path), TEXT, **bad)


def test_prompts_and_models_that_do_not_fit(tmp_path: Path) -> None:
    path = save_model(tmp_path)
    with pytest.raises(UsageError, match="prompt: has 0 tokens"):
        generate(path, "")
    with pytest.raises(UsageError, match="prompt: is not valid UTF-8"):
        generate(path, "w1 \udcff")
    encoder = save_onnx(
        tmp_path / "encoder.onnx",
        "e (int64[b, s] input_ids) => (float[b, s, d] hidden) { hidden = Gather(w, input_ids) }",
        w=HEAD,
    )
    with pytest.raises(ModelError, match="does not map token ids to logits"):
        generate(encoder, TEXT)
    lost = GRAPH.replace(", float[b, 1, t, 6] PRESENT)", ")").replace("PAST", "past__0").replace("PRESENT", "now")
    lost_path = save_onnx(tmp_path / "lost.onnx", lost, embedding=EMBEDDING, position=POSITION, head=HEAD)
    with pytest.raises(ModelError, match="has 1 past inputs but 0 present outputs"):
        generate(lost_path, TEXT)
    small = save_onnx(
        tmp_path / "small.onnx",
        GRAPH.replace("PAST", "past__0").replace("PRESENT", "present__0"),
        embedding=EMBEDDING[:2],
        position=POSITION,
        head=HEAD,
    )
    with pytest.raises(ModelError, match=r"small.onnx: failed to run"):
        generate(small, TEXT)


def test_bench_reads_a_prompt_and_writes_tokens_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, ids: (steps.append(len(ids[0])), step(self, ids))[1])
    rates = bench(save_model(tmp_path), prompt_tokens=7, new_tokens=3, repetitions=2, threads=[1])
    assert steps == [1, *[7, 1, 1, 1] * 3]  # the size of the vocabulary, then a run to warm up, and two
    (rate,) = rates.rates
    assert rate.prefill_tokens_per_second == pytest.approx(7 / rate.first_token_seconds)
    assert rate.decode_tokens_per_second > 0 and rates.peak_memory_bytes > 1 << 20
    assert bench(save_model(tmp_path), prompt_tokens=1, new_tokens=1).rates[0].threads == 1


def test_bench_beyond_the_positions(tmp_path: Path) -> None:
    path = save_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 16}))
    with pytest.raises(UsageError, match=r"10 \+ 7 tokens are more than the model's 16: ask for fewer"):
        bench(path, prompt_tokens=10, new_tokens=7)
    with pytest.raises(UsageError, match="bench: a number below 1"):
        bench(path, prompt_tokens=0)
