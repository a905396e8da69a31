from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from qxcompiler.calibration.samples import (
    input_specs,
    load_mixed,
    load_samples,
    supply_missing,
)
from qxcompiler.errors import CalibrationError, TokenizerError
from qxcompiler_runtime.configuration import context_limit
from qxcompiler_runtime.inputs import InputSpec
from qxcompiler_runtime.tokens import load_tokenizer

INT64, FLOAT32 = np.dtype(np.int64), np.dtype(np.float32)
IDS = InputSpec("input_ids", INT64, ("batch", "sequence"))
LANGUAGE = [
    IDS,
    InputSpec("attention_mask", INT64, ("batch", "past + sequence")),
    InputSpec("position_ids", INT64, ("batch", "sequence")),
    InputSpec("past_key_values.0.key", FLOAT32, ("batch", 3, "past", 16)),
    InputSpec("past_key_values.0.value", np.dtype(np.float16), ("batch", 3, "past", 16)),
]
IMAGE = [InputSpec("pixel_values", FLOAT32, ("batch", 3, 4, "width"))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, with a tokenizer of the words n0 ... n999."""
    save_tokenizer(tmp_path)
    return tmp_path


def save_tokenizer(folder: Path, template: str | None = None) -> None:
    words = {f"n{i}": i for i in range(1000)} | {"[UNK]": 1000, "[CLS]": 1001, "[SEP]": 1002}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    if template:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=template, special_tokens=[("[CLS]", 1001), ("[SEP]", 1002)]
        )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(folder / "tokenizer.json"))


def words(count: int) -> str:
    return " ".join(f"n{i % 1000}" for i in range(count))


def load(folder: Path, content: str, inputs: list[InputSpec] = LANGUAGE, name: str = "text.txt", **options: Any) -> Any:
    (folder / name).write_text(content, encoding="utf-8")
    return load_samples(folder / name, inputs, folder / "model.onnx", **{"samples": 4, "length": 10} | options)


def test_windows_are_spaced_evenly_over_the_text(folder: Path) -> None:
    samples = load(folder, words(210))
    # (210 - 10) // 4 = 50 tokens from one window to the next
    assert [sample["input_ids"].tolist() for sample in samples] == [[list(range(s, s + 10))] for s in (0, 50, 100, 150)]


@settings(max_examples=50, deadline=None)
@given(tokens=st.integers(1, 60), samples=st.integers(1, 12), length=st.integers(1, 20))
def test_windows_lie_in_the_text_and_differ(
    tmp_path_factory: pytest.TempPathFactory, tokens: int, samples: int, length: int
) -> None:
    folder = tmp_path_factory.mktemp("windows")
    save_tokenizer(folder)
    if tokens < length:
        with pytest.raises(CalibrationError, match=f"has {tokens} tokens, but one sample takes {length}"):
            load(folder, words(tokens), samples=samples, length=length)
        return
    loaded = load(folder, words(tokens), samples=samples, length=length)
    starts = [int(sample["input_ids"][0, 0]) for sample in loaded]
    assert len(starts) == min(samples, tokens // length)
    gaps = np.diff(starts)
    assert (gaps >= length).all()  # no token is in two windows
    assert np.ptp(gaps) <= 1 if len(gaps) else starts == [0]
    assert tokens - (starts[-1] + length) <= max(gaps, default=tokens) + samples
    for sample, start in zip(loaded, starts, strict=True):
        assert sample["input_ids"].tolist() == [list(range(start, start + length))]


def test_missing_inputs_are_supplied(folder: Path) -> None:
    sample = load(folder, words(50))[0]
    assert list(sample) == [spec.name for spec in LANGUAGE]
    assert sample["attention_mask"].tolist() == [[1] * 10]
    assert sample["position_ids"].tolist() == [list(range(10))]
    assert sample["past_key_values.0.key"].shape == (1, 3, 0, 16)
    assert [value.dtype for value in sample.values()] == [spec.dtype for spec in LANGUAGE]


def test_inputs_after_a_past() -> None:
    specs = [
        *LANGUAGE[:3],
        InputSpec("cache_position", INT64, ("sequence",)),
        InputSpec("use_cache_branch", np.dtype(bool), (1,)),
    ]
    sample = supply_missing({"input_ids": np.array([[5, 6]])}, specs, past_length=3)
    assert sample["attention_mask"].tolist() == [[1] * 5]
    assert sample["position_ids"].tolist() == [[3, 4]]
    assert sample["cache_position"].tolist() == [3, 4]
    assert sample["use_cache_branch"].tolist() == [True]
    with pytest.raises(CalibrationError, match=r"no value for the model's input past_key_values.0.key"):
        supply_missing({"input_ids": np.array([[5]])}, LANGUAGE, past_length=3)


def test_json_lines_are_one_text(folder: Path) -> None:
    lines = [json.dumps({"text": text, "id": 7}) for text in ("n0 n1 n2", "n3 n4", "n5 n6 n7 n8 n9")]
    (sample,) = load(folder, "\n".join([*lines, ""]), name="text.jsonl", samples=1)
    assert sample["input_ids"].tolist() == [list(range(10))]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("[CLS] $A [SEP]", [1001, 0, 1, 2, 1002]),
        ("[CLS] $A", [0, 1, 2, 3, 4]),  # a leading token alone is not part of the protocol
        (None, [0, 1, 2, 3, 4]),
    ],
)
def test_brackets_of_encoders(tmp_path: Path, template: str | None, expected: list[int]) -> None:
    save_tokenizer(tmp_path, template)
    samples = load(tmp_path, words(20), length=5)
    assert samples[0]["input_ids"].tolist() == [expected]
    assert {sample["input_ids"].shape for sample in samples} == {(1, 5)}


def test_brackets_leave_room_for_text(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, "[CLS] $A [SEP]")
    with pytest.raises(CalibrationError, match=r"no room for text in 2 tokens: give a --length over 2"):
        load(tmp_path, words(20), length=2)


def test_arrays(folder: Path) -> None:
    images = np.random.default_rng(0).standard_normal((6, 3, 4, 5))  # float64: fits float32
    np.savez(folder / "images.npz", pixel_values=images)
    samples = load_samples(folder / "images.npz", IMAGE, folder / "model.onnx", samples=3, length=1)
    assert len(samples) == 3
    for sample, row in zip(samples, (0, 2, 4), strict=True):
        assert sample["pixel_values"].dtype == np.float32
        np.testing.assert_array_equal(sample["pixel_values"], images[row : row + 1].astype(np.float32))


def test_arrays_of_token_ids_get_the_rest(folder: Path) -> None:
    np.savez(folder / "ids.npz", input_ids=np.arange(8, dtype=np.int32).reshape(2, 4))
    samples = load_samples(folder / "ids.npz", LANGUAGE, folder / "model.onnx", samples=9, length=1)
    assert [sample["input_ids"].tolist() for sample in samples] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    assert samples[0]["attention_mask"].shape == (1, 4)


GOOD = np.zeros((2, 3, 4, 5), np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"pixels": GOOD},
            r"the model has no input pixels: give arrays for pixel_values float32 \[batch, 3, 4, width\]",
        ),
        ({}, r"holds no samples"),
        ({"pixel_values": GOOD[:0]}, r"holds no samples"),
        (
            {"pixel_values": GOOD[:, :2]},
            r"pixel_values has shape \[2, 2, 4, 5\]: the model takes pixel_values float32",
        ),
        ({"pixel_values": GOOD[None, None]}, r"pixel_values has shape \[1, 1, 2, 3, 4, 5\]"),
        ({"pixel_values": GOOD[0]}, r"pixel_values has shape \[3, 4, 5\]"),
        ({"pixel_values": np.float32(1)}, r"pixel_values has shape \[\]"),
        ({"pixel_values": GOOD.astype(int)}, r"pixel_values has type int64"),
        ({"pixel_values": np.array(["a"])}, r"pixel_values has type <U1"),
        ({"pixel_values": GOOD + np.nan}, r"pixel_values holds NaN or infinity"),
        ({"pixel_values": np.array([{}], object)}, r"not an archive of plain arrays"),
    ],
)
def test_arrays_that_do_not_fit(folder: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(folder / "images.npz", **arrays)
    with pytest.raises(CalibrationError, match=message):
        load_samples(folder / "images.npz", IMAGE, folder / "model.onnx", samples=3, length=1)


def test_arrays_of_different_length(folder: Path) -> None:
    np.savez(folder / "two.npz", input_ids=np.zeros((2, 4), int), attention_mask=np.ones((3, 4), int))
    with pytest.raises(CalibrationError, match=r"differ in their number of samples"):
        load_samples(folder / "two.npz", LANGUAGE, folder / "model.onnx", samples=3, length=1)


def test_an_input_that_cannot_be_derived_is_named(folder: Path) -> None:
    with pytest.raises(CalibrationError, match=r"no value for the model's input pixel_values .*: give a .npz file"):
        load(folder, words(20), [IDS, *IMAGE])


def test_inputs_of_fixed_size(folder: Path) -> None:
    fixed = [InputSpec("input_ids", INT64, (1, 8))]
    assert load(folder, words(20), fixed, length=8)[0]["input_ids"].shape == (1, 8)
    with pytest.raises(
        CalibrationError, match=r"input_ids of shape \[1, 10\], but the model takes input_ids int64 \[1, 8\]"
    ):
        load(folder, words(20), fixed)


def test_short_text_makes_fewer_windows_that_do_not_overlap(folder: Path) -> None:
    """48 windows of 64 from 163 tokens would lie over each other, those held back for verification too."""
    starts = [sample["input_ids"][0, 0] for sample in load(folder, words(163), samples=48, length=64)]
    assert starts == [0, 163 - 64]
    assert len(load(folder, words(1000), samples=10**6, length=10)) == 100


def test_windows_reach_to_the_end_of_the_text(folder: Path) -> None:
    """With fewer than twice as many windows as asked for, they were the first ones."""
    starts = [int(sample["input_ids"][0, 0]) for sample in load(folder, words(15), samples=10, length=1)]
    assert (starts[0], starts[-1], len(starts)) == (0, 14, 10)


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=4), wanted=st.integers(1, 20), seed=st.integers(0, 9))
def test_files_are_mixed_evenly(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], wanted: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("mixed")
    save_tokenizer(folder)
    for kind, count in enumerate(counts):  # windows of ten words, which say what file they are of
        (folder / f"{kind}.txt").write_text(" ".join(f"n{100 * kind + word}" for word in range(10 * count)))
    files = [folder / f"{kind}.txt" for kind in range(len(counts))]

    def load_all() -> list[Any]:
        return load_mixed(files, LANGUAGE, folder / "model.onnx", samples=wanted, length=10, seed=seed)

    kinds = [int(sample["input_ids"][0, 0]) // 100 for sample in load_all()]
    share = -(-wanted // len(counts))
    assert [kinds.count(kind) for kind in range(len(counts))] == [min(count, share) for count in counts]
    for start in range(0, min(share, *counts, 9) * len(counts), len(counts)):  # every run has one of each
        assert sorted(kinds[start : start + len(counts)]) == list(range(len(counts)))
    assert [sample["input_ids"].tolist() for sample in load_all()] == [
        sample["input_ids"].tolist() for sample in load_all()
    ]


@pytest.mark.parametrize("name", ["text.txt", "text.jsonl"])
def test_a_byte_order_mark_is_no_text(folder: Path, name: str) -> None:
    content = "\ufeff" + (words(10) if name == "text.txt" else json.dumps({"text": words(10)}))
    assert load(folder, content, name=name, samples=1)[0]["input_ids"].tolist() == [list(range(10))]


def test_text_for_a_fixed_batch(folder: Path) -> None:
    fixed = [InputSpec("input_ids", INT64, (4, "sequence")), InputSpec("attention_mask", INT64, (4, "sequence"))]
    samples = load(folder, words(200), fixed, samples=2, length=10)
    assert [sample["input_ids"].shape for sample in samples] == [(4, 10)] * 2
    assert len({int(first) for sample in samples for first in sample["input_ids"][:, 0]}) == 8
    assert samples[0]["attention_mask"].shape == (4, 10)
    with pytest.raises(CalibrationError, match="makes 3 windows of 10 tokens, but one run of the model takes 4"):
        load(folder, words(30), fixed, length=10)
    alone = [InputSpec("input_ids", INT64, ("sequence",))]
    assert load(folder, words(200), alone, samples=2)[0]["input_ids"].shape == (10,)


def test_a_fixed_length_is_the_default(folder: Path) -> None:
    assert load(folder, words(20), [InputSpec("input_ids", INT64, (1, 8))], length=None)[0]["input_ids"].shape == (1, 8)


@pytest.mark.parametrize(
    ("declared", "given", "one_run", "runs"),
    [
        (("batch", 3), (6, 3), (1, 3), 6),
        ((None, 3), (6, 3), (1, 3), 6),
        ((4, 3), (10, 3), (4, 3), 2),  # a fixed batch; what is left over is dropped
        ((1, 3, "h", "w"), (6, 3, 5, 7), (1, 3, 5, 7), 6),
        ((), (6,), (), 6),  # conditions
        ((1,), (6,), (1,), 6),
        ((3,), (6, 3), (3,), 6),  # no batch axis
        ((5, 3), (6, 5, 3), (5, 3), 6),
        (("time", "batch", 3), (5, 6, 3), (5, 1, 3), 6),  # time-major, by either name
        (("seq_len", None, 3), (5, 6, 3), (5, 1, 3), 6),
        ((5, "n", 3), (5, 6, 3), (5, 1, 3), 6),
        (("batch", "time", 3), (6, 1, 5, 3), (1, 5, 3), 6),  # whole inputs, each a batch of one
        (None, (6, 3), (1, 3), 6),
        ((4, 3), (4, 3), (4, 3), 1),
        ((), (), (), 1),
        (("time",), (6,), (6,), 1),
    ],
)
def test_samples_lie_along_the_batch_axis(folder: Path, declared: Any, given: Any, one_run: Any, runs: int) -> None:
    spec = InputSpec("x", FLOAT32, declared)
    array = np.arange(np.prod(given, dtype=int), dtype=np.float32).reshape(given)
    np.savez(folder / "x.npz", x=array)
    samples = load_samples(folder / "x.npz", [spec], None, samples=99)
    assert [sample["x"].shape for sample in samples] == [one_run] * runs
    values = np.concatenate([sample["x"].ravel() for sample in samples])
    assert len(set(values)) == len(values)
    assert set(values) <= set(array.ravel())
    assert len(values) == array.size or declared == (4, 3)


def test_an_input_that_all_samples_share(folder: Path) -> None:
    specs = [
        InputSpec("x", FLOAT32, ("batch", 3)),
        InputSpec("anchors", FLOAT32, (7, 4)),
        InputSpec("threshold", FLOAT32, ()),
        InputSpec("places", FLOAT32, ("count", 2)),  # x names its batch, this names another size
    ]
    arrays = {"x": np.ones((6, 3)), "anchors": np.ones((7, 4)), "threshold": np.float64(2), "places": np.ones((9, 2))}
    np.savez(folder / "x.npz", **arrays)
    samples = load_samples(folder / "x.npz", specs, None, samples=2)
    assert [{name: array.shape for name, array in sample.items()} for sample in samples] == [
        {"x": (1, 3), "anchors": (7, 4), "threshold": (), "places": (9, 2)}
    ] * 2


def test_a_free_batch_goes_with_a_fixed_one(folder: Path) -> None:
    specs = [InputSpec("x", FLOAT32, (4, 3)), InputSpec("y", FLOAT32, ("batch", 2))]
    np.savez(folder / "x.npz", x=np.ones((12, 3)), y=np.ones((12, 2)))
    samples = load_samples(folder / "x.npz", specs, None, samples=9)
    assert [sample["y"].shape for sample in samples] == [(4, 2)] * 3


def test_arrays_are_spaced_evenly(folder: Path) -> None:
    np.savez(folder / "x.npz", x=np.arange(50, dtype=np.float32)[:, None])
    samples = load_samples(folder / "x.npz", [InputSpec("x", FLOAT32, ("batch", 1))], None, samples=40)
    rows = [int(sample["x"].item()) for sample in samples]
    assert (len(set(rows)), rows[0]) == (40, 0)
    assert rows[-1] >= 48  # they were the first 40
    assert max(np.diff(rows)) == 2


@pytest.mark.parametrize(
    ("dtype", "array", "message"),
    [
        ("float32", np.array([1e300]), "x holds numbers too large for float32"),
        ("float16", np.array([70000.0]), "x holds numbers too large for float16"),
        ("bfloat16", np.array([1e300]), "x holds numbers too large for bfloat16"),
        ("float64", np.array([np.inf]), "x holds NaN or infinity"),
        ("int32", np.array([2**40]), "x holds numbers from 1099511627776 .* too large for int32"),
        ("uint8", np.array([-1]), "x holds numbers from -1"),
        ("bool", np.array([1]), "x has type int64"),
        ("int64", np.array([1.0]), "x has type float64"),
        ("O", np.array([1]), "x has type int64: the model takes x string"),
    ],
)
def test_numbers_that_the_type_of_an_input_cannot_hold(dtype: str, array: Any, message: str) -> None:
    spec = InputSpec("x", np.dtype(dtype), ("batch",))
    with pytest.raises(CalibrationError, match=message):
        load_samples([{"x": array}], [spec], None, samples=1)


@pytest.mark.parametrize(("dtype", "array"), [("float32", np.array([1.0, 1e300])), ("int32", np.array([1, 2**40]))])
def test_numbers_of_a_file_are_not_cast_to_infinity_or_zero(folder: Path, dtype: str, array: Any) -> None:
    np.savez(folder / "x.npz", x=array)
    with pytest.raises(CalibrationError, match=rf"x\.npz: x holds numbers .*too large for {dtype}"):
        load_samples(
            folder / "x.npz", [InputSpec("x", np.dtype(dtype), ("batch",))], folder / "m.onnx", samples=2, length=1
        )


@pytest.mark.parametrize(
    ("dtype", "array"),
    [
        ("bfloat16", np.array([1.5])),
        ("int32", np.array([2**31 - 1])),
        ("uint8", np.array([255])),
        ("bool", np.array([True])),
        ("O", np.array(["a", "b"])),
        ("O", np.array(["a", "bc"], object)),
    ],
)
def test_numbers_that_fit_are_cast(dtype: str, array: Any) -> None:
    (sample,) = load_samples([{"x": array}], [InputSpec("x", np.dtype(dtype), ("batch",))], None, samples=1)
    assert sample["x"].dtype == np.dtype(dtype)
    assert sample["x"].tolist() == array.tolist()


def test_feeds_from_python() -> None:
    taken = []

    def feeds():
        for number in range(10):
            taken.append(number)
            yield {"input_ids": [[number, 1]]}

    samples = load_samples(feeds(), LANGUAGE, None, samples=3)
    assert taken == [0, 1, 2]
    assert [sample["input_ids"].tolist() for sample in samples] == [[[0, 1]], [[1, 1]], [[2, 1]]]
    assert samples[0]["past_key_values.0.key"].shape == (1, 3, 0, 16)
    for wrong, message in (
        ([], "samples: there are none"),
        ([{"input_ids": [[1]]}, [1]], "sample 1: is a list"),
        ([{"ids": [[1]]}], "sample 0: the model has no input ids"),
        ([{"input_ids": [1]}], r"a sample has input_ids of shape \[1\]"),
    ):
        with pytest.raises(CalibrationError, match=message):
            load_samples(wrong, [IDS], None, samples=3)


def test_archives_that_unpack_to_too_much(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(folder / "x.npz", input_ids=np.zeros((400, 1000), int))
    monkeypatch.setattr("qxcompiler.calibration.arrays._MOST_BYTES", 3_000_000)
    with pytest.raises(CalibrationError, match=r"unpacks to 0.0 GB, more than 0.0 GB: give fewer samples"):
        load_samples(folder / "x.npz", LANGUAGE, None, samples=1)


def test_arrays_that_claim_more_than_they_hold(folder: Path) -> None:
    np.save(folder / "x.npy", np.zeros((2, 4), int))
    data = (folder / "x.npy").read_bytes().replace(b"(2, 4)", b"(2, 9)")
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        archive.writestr("input_ids.npy", data)
    with pytest.raises(CalibrationError, match=r"claims 144 bytes and has 64"):
        load_samples(folder / "x.npz", LANGUAGE, None, samples=1)
    (folder / "x.npz").write_bytes((folder / "x.npy").read_bytes())  # an array, not an archive of some
    with pytest.raises(CalibrationError, match="not an archive of plain arrays"):
        load_samples(folder / "x.npz", LANGUAGE, None, samples=1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.txt", "", "is empty"),
        ("text.txt", " \n ", "is empty"),
        ("text.jsonl", "", "is empty"),
        ("text.txt", "n1 n2", "has 2 tokens, but one sample takes 10: give more text or a smaller --length"),
        ("text.jsonl", "{", "line 1 is not JSON"),
        ("text.jsonl", '{"text": "n1"}\n{"texts": "n1"}', "line 2 has no string 'text'"),
        ("text.jsonl", '{"text": 3}', "line 1 has no string 'text'"),
        ("text.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("text.jsonl", '{"text": ' + "9" * 5000 + "}", "line 1 is not JSON"),
        ("text.jsonl", '{"text": "\\ud800"}', "holds half a surrogate pair"),
        ("text.csv", "n1", "cannot read samples from .csv files: give .txt, .jsonl or .npz"),
        ("text.npz", "n1", "not an archive of plain arrays"),
    ],
)
def test_files_that_are_no_samples(folder: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        load(folder, content, name=name)


def test_files_that_cannot_be_read(folder: Path) -> None:
    for name in ("missing.txt", "missing.jsonl", "missing.npz"):
        with pytest.raises(CalibrationError, match=rf"{name}: cannot be read \(No such file or directory\)"):
            load_samples(folder / name, LANGUAGE, folder / "model.onnx", samples=1, length=1)
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(CalibrationError, match=r"is not UTF-8 \(byte 3\)"):
        load_samples(folder / "latin.txt", LANGUAGE, folder / "model.onnx", samples=1, length=1)
    np.savez(folder / "cut.npz", input_ids=np.zeros((50, 50), int))
    (folder / "cut.npz").write_bytes((folder / "cut.npz").read_bytes()[:9000])
    with pytest.raises(CalibrationError, match="not an archive of plain arrays"):
        load_samples(folder / "cut.npz", LANGUAGE, folder / "model.onnx", samples=1, length=1)


def test_text_for_a_model_without_token_ids(folder: Path) -> None:
    with pytest.raises(CalibrationError, match=r"takes no token ids, only pixel_values .*: give a .npz file"):
        load(folder, words(20), IMAGE)


def test_tokenizers(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for tokenizer in (folder, folder / "tokenizer.json"):
        assert load(folder, words(20), tokenizer=tokenizer)
        assert load_tokenizer(elsewhere / "model.onnx", tokenizer).encode(words(9)).ids == list(range(9))
    with pytest.raises(TokenizerError, match=r"tokenizer.json: no such file: .*--tokenizer"):
        load_tokenizer(elsewhere / "model.onnx")
    (elsewhere / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="not a tokenizer"):
        load_tokenizer(elsewhere / "model.onnx")


def test_the_context_is_respected(folder: Path) -> None:
    assert context_limit(folder / "model.onnx") is None
    for key in ("max_position_embeddings", "n_positions"):
        (folder / "config.json").write_text(json.dumps({key: 9}))
        with pytest.raises(CalibrationError, match=r"samples of 10 tokens, but .* takes at most 9: give --length 9"):
            load(folder, words(20))
        assert len(load(folder, words(20), length=9)) == 2
        assert load(folder, words(20), length=None)[0]["input_ids"].shape == (1, 9)
    for unsaid in ("[1", "[" * 100_000, '{"n_positions": true}', '{"n_positions": -1}', '{"n_positions": "9"}', "{}"):
        (folder / "config.json").write_text(unsaid)
        assert context_limit(folder / "model.onnx") is None
    (folder / "config.json").write_text(json.dumps({"n_positions": 10**4000}))
    assert load(folder, words(600), length=None)[0]["input_ids"].shape == (1, 512)


@pytest.mark.parametrize("bad", [{"samples": 0}, {"length": 0}, {"samples": -3}])
def test_counts_are_positive(folder: Path, bad: dict[str, int]) -> None:
    with pytest.raises(CalibrationError, match="give positive numbers"):
        load(folder, words(20), **bad)


def test_input_specs() -> None:
    values = [
        ir.Value(name="input_ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", 4])),
        ir.Value(name="x", type=ir.TensorType(ir.DataType.BFLOAT16), shape=ir.Shape([None, 2])),
        ir.Value(name="y", type=ir.TensorType(ir.DataType.BOOL)),
        ir.Value(name="z", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([-1, 3])),
        ir.Value(name="w", type=ir.TensorType(ir.DataType.FLOAT), const_value=ir.tensor([1.0], name="w")),
    ]
    graph = ir.Graph(values, [], nodes=[], initializers=values[4:], opset_imports={"": 18})
    ids, x, y, z = input_specs(ir.Model(graph, ir_version=10))
    assert ids == InputSpec("input_ids", INT64, ("batch", 4))
    assert (x.dtype.name, x.shape, str(x)) == ("bfloat16", (None, 2), "x bfloat16 [?, 2]")
    assert (y.dtype, y.shape, str(y)) == (np.dtype(bool), None, "y bool [any shape]")
    assert y.accepts((1, 2, 3))
    assert z.shape == (None, 3)
    many = ir.Value(name="s", type=ir.SequenceType(ir.TensorType(ir.DataType.FLOAT)))
    with pytest.raises(CalibrationError, match=r"input s: .* is not a tensor: use a model with tensor inputs"):
        input_specs(ir.Model(ir.Graph([many], [], nodes=[], opset_imports={"": 18}), ir_version=10))
