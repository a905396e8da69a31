"""What verification says of a compiled model, the measure behind it, and the inputs it makes up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import graph_models
import numpy as np
import onnx
import pytest
from tiny_onnx import save_onnx

from qxcompiler.calibration.made_up import made_up_samples
from qxcompiler.errors import CalibrationError, ModelError, VerificationError
from qxcompiler.evaluation import verify
from qxcompiler.evaluation.similarity import Comparison, OutputSimilarity, compared_outputs
from qxcompiler.graph import load_model, normalize

RNG = np.random.default_rng(0)
VALUES = RNG.standard_normal((4, 8)).astype(np.float32)
NAN, INF = np.float32("nan"), np.float32("inf")


def compare(*pairs: tuple[Any, Any]) -> OutputSimilarity:
    """The figures of one output, over samples of what a model and its reference give."""
    comparison = Comparison(["y"])
    for y, y_ref in pairs:
        comparison.add([y], [y_ref])
    return comparison.figures()["y"]


def with_value(value: float, array: np.ndarray = VALUES) -> np.ndarray:
    changed = array.copy()
    changed[1, 2] = value
    return changed


def test_figures_by_closed_form() -> None:
    other = VALUES + 0.3 * RNG.standard_normal(VALUES.shape)
    figures = compare((other[:2], VALUES[:2]), (other[2:], VALUES[2:]))
    a, b = other.astype(float), VALUES.astype(float)
    cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert figures.judged
    assert figures.cosine_similarity == pytest.approx(cosines.mean())
    assert figures.relative_error == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b))
    assert figures.error_to_spread == pytest.approx(np.sqrt(np.square(a - b).mean()) / b.std())
    assert (figures.values, figures.broken, figures.moved, figures.misfits, figures.note) == (32, 0, 0, 0, "")


def test_large_outputs_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    y_ref = np.where(np.eye(4, 8) > 0, -INF, VALUES)
    whole = compare((y_ref * 1.1, y_ref))
    monkeypatch.setattr("qxcompiler.evaluation.similarity._CHUNK", 10)
    parts = compare((y_ref * 1.1, y_ref))
    assert parts.model_dump() == pytest.approx(whole.model_dump())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_float_types(dtype: str) -> None:
    values = VALUES.astype(np.dtype(dtype))
    assert compare((values * 2, values)).relative_error == pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize("y", [np.zeros((4, 8)), np.full((4, 8), 1e-10), VALUES, np.full((4, 8), -INF), VALUES * NAN])
def test_equal_outputs_are_equal(y: np.ndarray) -> None:
    figures = compare((y, y), (y, y))
    assert figures.judged
    assert figures.cosine_similarity in (1, None)
    assert figures.relative_error in (0, None)
    assert (figures.broken, figures.moved) == (0, 0)


def test_rows_that_are_zero_in_both_are_left_out() -> None:
    padded = VALUES.copy()
    padded[2:] = 0
    assert compare((padded * 1.01, padded)).cosine_similarity == pytest.approx(1)
    noise = padded + np.where(padded == 0, 1e-9, 0) * RNG.standard_normal(padded.shape)
    assert compare((padded, noise)).cosine_similarity == pytest.approx(1)


@pytest.mark.parametrize(("scale", "reference"), [(1e-9, 0.0), (0.0, 1e-9), (1e-9, 1e-9)])
def test_outputs_near_zero_are_not_judged(scale: float, reference: float) -> None:
    figures = compare((VALUES * scale, VALUES[::-1] * reference))
    assert not figures.judged
    assert "too near zero for a ratio" in figures.note


def test_few_numbers_are_not_judged() -> None:
    """One output, 30 % off: a cosine of 1 means nothing."""
    reference = np.array([5.0, 5.1, 4.9, 5.0])
    figures = compare(*((np.array([[y * 1.3]]), np.array([[y]])) for y in reference))
    assert not figures.judged
    assert "only 4 numbers" in figures.note
    assert figures.relative_error == pytest.approx(0.3, rel=1e-3)
    assert figures.error_to_spread == pytest.approx(1.5 / reference.std(), rel=1e-2)


def test_one_number_a_row_is_pooled() -> None:
    reference = RNG.standard_normal((20, 1))
    other = reference + 0.5 * RNG.standard_normal((20, 1))
    expected = (reference * other).sum() / np.linalg.norm(reference) / np.linalg.norm(other)
    assert compare((other, reference)).cosine_similarity == pytest.approx(expected)


@pytest.mark.parametrize(
    ("y", "y_ref", "broken", "moved"),
    [
        (with_value(NAN), VALUES, 1, 0),
        (with_value(INF), VALUES, 1, 0),
        (with_value(NAN), with_value(NAN), 0, 0),
        (with_value(-INF), with_value(-INF), 0, 0),
        (VALUES, with_value(-INF), 0, 1),
        (VALUES, with_value(NAN), 0, 1),
        (with_value(-INF), with_value(INF), 0, 1),
        (with_value(-INF), with_value(NAN), 0, 1),
        # a mask that moved: the original has such infinities
        (np.where(np.eye(4, 8) > 0, -INF, VALUES), np.where(np.eye(4, 8, 1) > 0, -INF, VALUES), 0, 8),
        (np.where(np.eye(4, 8) > 0, INF, VALUES), np.where(np.eye(4, 8, 1) > 0, -INF, VALUES), 4, 4),
    ],
)
def test_what_is_not_finite(y: np.ndarray, y_ref: np.ndarray, broken: int, moved: int) -> None:
    figures = compare((y, y_ref))
    assert (figures.broken, figures.moved, figures.values) == (broken, moved, 32)
    assert figures.relative_error == 0  # of what is finite in both
    assert (f"{broken} of 32 values are NaN" in figures.note) == (broken > 0)


def test_numbers_too_large_for_a_ratio() -> None:
    figures = compare((VALUES.astype(float) * 1e300, VALUES.astype(float) * -1e300))
    assert (figures.judged, figures.note) == (False, "holds numbers too large for a ratio")


@pytest.mark.parametrize(
    ("y", "y_ref", "agreement"),
    [
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), 0.75),
        (np.array([True, False]), np.array([True, True]), 0.5),
        (np.array(["a", "b"], object), np.array(["a", "b"], object), 1),
        (np.array("a"), np.array("b"), 0),
        ([np.array([1]), np.array([2])], [np.array([1]), np.array([3])], 0.5),
        ([{1: "a", 2: "b"}], [{1: "a", 2: "c"}], 0.5),
    ],
)
def test_agreement(y: Any, y_ref: Any, agreement: float) -> None:
    figures = compare((y, y_ref))
    assert (figures.judged, figures.agreement, figures.cosine_similarity) == (True, agreement, None)


def test_sequences_maps_and_optional_outputs() -> None:
    figures = compare(([VALUES, VALUES[0]], [VALUES * 2, VALUES[0]]), ([], []))
    assert (figures.values, figures.misfits) == (40, 0)
    figures = compare(([{0: 0.5, 1: 0.5}] * 9, [{0: 1.0, 1: 0.5}] * 9))  # a classifier's probabilities
    assert figures.relative_error == pytest.approx(0.5 / np.hypot(1, 0.5))
    assert compare((None, None)).note == "holds no values"


@pytest.mark.parametrize(
    ("y", "y_ref", "said"),
    [
        (VALUES[:3], VALUES, "[3, 8], not [4, 8]"),
        ([VALUES], [VALUES, VALUES], "1 elements, not 2 elements"),
        (None, VALUES, "nothing, not an array of shape [4, 8]"),
        ({1: 2}, {1: 2, 2: 3}, "1 elements, not 2 elements"),
        (np.array([1]), np.array([1.0]), "int64, not float64"),
    ],
)
def test_shapes_that_depend_on_data(y: Any, y_ref: Any, said: str) -> None:
    figures = compare((y, y_ref))
    assert (figures.judged, figures.misfits, figures.values) == (False, 1, 0)
    assert said in figures.note
    figures = compare((y, y_ref), (VALUES * 1.1, VALUES))
    assert (figures.judged, figures.misfits, figures.values) == (True, 1, 32)
    assert figures.relative_error == pytest.approx(0.1, rel=1e-5)
    assert f"in 1 of 2 cases ({said})" in figures.note


def test_figures_are_json() -> None:
    for figures in (compare((VALUES, VALUES)), compare((VALUES * INF, VALUES)), compare((VALUES, VALUES * 0))):
        assert OutputSimilarity.model_validate_json(figures.model_dump_json()) == figures
        assert "Infinity" not in json.dumps(figures.model_dump(), allow_nan=False)


def test_caches_are_compared_where_there_is_nothing_else() -> None:
    assert compared_outputs(["logits", "present.0.key"]) == ["logits"]
    assert compared_outputs(["present.0.key", "present.0.value"]) == ["present.0.key", "present.0.value"]


# Verification, of models that pretend to be compiled.

LINEAR = "g (float[b, 6] x) => (float[b, 5] y) { y = MatMul(x, w) }"
W = RNG.standard_normal((6, 5)).astype(np.float32)
X = [{"x": RNG.standard_normal((4, 6)).astype(np.float32)} for _ in range(3)]


def linear(path: Path, w: np.ndarray = W, graph: str = LINEAR) -> Path:
    return save_onnx(path, graph, w=w.astype(np.float32))


def test_a_sound_model(tmp_path: Path) -> None:
    noisy = W + 0.1 * RNG.standard_normal(W.shape)
    original, compiled = linear(tmp_path / "m.onnx"), linear(tmp_path / "c.onnx", noisy)
    result = verify(compiled, original, X, bits=4)
    assert (result.samples, result.made_up, list(result.outputs)) == (3, False, ["y"])
    y, y_ref = (np.concatenate([sample["x"] @ w for sample in X]) for w in (noisy, W))
    expected = np.linalg.norm(y - y_ref) / np.linalg.norm(y_ref)
    assert result.outputs["y"].relative_error == pytest.approx(expected, rel=1e-5)
    assert result.cosine_similarity == {"y": result.outputs["y"].cosine_similarity}
    assert result.without_library["y"].values == 20  # the first sample
    assert verify(compiled, original.read_bytes(), iter(X), bits=4) == result
    assert verify(compiled, original, X, made_up=True).made_up


@pytest.mark.parametrize(
    ("w", "said"),
    [
        (with_value(NAN, W), r"output y: 12 of 60 values are NaN or infinite"),
        (-W, r"output y is 200% off the original's, cosine similarity -1.000"),
        (W * 100, r"output y is 9900% off the original's, cosine similarity 1.000"),
        (RNG.permutation(W), r"output y is \d+% off"),
    ],
)
def test_a_broken_model_is_refused(tmp_path: Path, w: np.ndarray, said: str) -> None:
    original, compiled = linear(tmp_path / "m.onnx"), linear(tmp_path / "c.onnx", w)
    pattern = rf"m.onnx: its compiled model is broken \({said}.*, most at up, down\): use more bits"
    with pytest.raises(VerificationError, match=pattern) as error:
        verify(compiled, original, X, bits=8, suspects=["up", "down"])
    assert error.value.exit_status == 1


def test_the_floor_follows_the_bits(tmp_path: Path) -> None:
    """The same half-lost model is broken in 8 bits, and what 2 bits may give."""
    lost = W + 1.5 * RNG.standard_normal(W.shape)
    original, compiled = linear(tmp_path / "m.onnx"), linear(tmp_path / "c.onnx", lost)
    assert 0.3 < verify(compiled, original, X, bits=2).cosine_similarity["y"] < 0.8
    with pytest.raises(VerificationError):
        verify(compiled, original, X, bits=8)
    with pytest.raises(VerificationError, match=r"cosine similarity -1\.000"):
        verify(linear(tmp_path / "c.onnx", -W), original, X, bits=1.58)


def test_a_model_that_cannot_be_loaded_or_run(tmp_path: Path) -> None:
    original = linear(tmp_path / "m.onnx")
    (tmp_path / "c.onnx").write_text("nonsense")
    with pytest.raises(VerificationError, match=r"broken \(.*onnxruntime cannot run it .*: report this as a bug"):
        verify(tmp_path / "c.onnx", original, X)
    fixed = linear(tmp_path / "c.onnx", graph=LINEAR.replace("float[b, 6] x", "float[1, 6] x"))
    with pytest.raises(VerificationError, match=r"broken \(.*failed to run"):
        verify(fixed, original, X)
    renamed = linear(tmp_path / "c.onnx", graph=LINEAR.replace("y", "z"))
    with pytest.raises(VerificationError, match=r"output y is gone"):
        verify(renamed, original, X)


@pytest.mark.parametrize("size", ["5", "b", "n"])
def test_a_shape_that_the_data_cannot_change(tmp_path: Path, size: str) -> None:
    """The compiled model gives [5, b] for [b, 5]; only a size that nobody declares may differ."""
    graph = "g (float[b, 6] x) => (float[b, SIZE] y) { y = MatMul(x, w) }"
    wrong = "g (float[b, 6] x) => (float[n, m] y) { z = MatMul(x, w)  y = Transpose(z) }"
    original = linear(tmp_path / "m.onnx", graph=graph.replace("SIZE", size))
    with pytest.raises(VerificationError, match=r"output y has shape \[5, 4\], not \[4, 5\]"):
        verify(linear(tmp_path / "c.onnx", graph=wrong), original, X)
    short = """g (float[b, 6] x) => (float[m] y)
    { z = MatMul(x, w)  all = Constant<value = int64[1] {-1}>()  y = Reshape(z, all) }"""
    with pytest.raises(VerificationError, match=r"output y has shape \[20\], not \[4, 5\]"):
        verify(linear(tmp_path / "c.onnx", graph=short), original, X)


def test_what_the_original_refuses_is_no_bug(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx")
    with pytest.raises(CalibrationError, match=r"samples: the original fails on them .*: give samples that"):
        verify(path, path, [{"x": np.ones((1, 7), np.float32)}])
    with pytest.raises(CalibrationError, match="no samples"):
        verify(path, path, [])
    (tmp_path / "n.onnx").write_text("nonsense")
    with pytest.raises(ModelError):
        verify(path, tmp_path / "n.onnx", X)


def test_an_output_that_changes_by_itself_is_not_judged(tmp_path: Path) -> None:
    graph = """g (float[b, 6] x) => (float[b, 5] y, float[b, 5] z)
    { y = MatMul(x, w)  n = RandomNormalLike(y)  z = Add(y, n) }"""
    path = linear(tmp_path / "m.onnx", graph=graph)
    result = verify(path, path, X, bits=8)
    assert result.outputs["y"].judged
    assert not result.outputs["z"].judged
    assert "differs from run to run" in result.outputs["z"].note
    assert list(result.cosine_similarity) == ["y"]


def test_a_detector_with_a_number_of_boxes_that_depends_on_data(tmp_path: Path) -> None:
    graph = """g (float[b, 6] x) => (int64[2, n] where, float[b, 5] y)
    { y = MatMul(x, w)  more = Greater(y, zero)  where = NonZero(more) }"""
    zero = np.zeros(1, np.float32)
    original = save_onnx(tmp_path / "m.onnx", graph, w=W, zero=zero)
    noisy = W + 0.1 * RNG.standard_normal(W.shape).astype(np.float32)
    result = verify(save_onnx(tmp_path / "c.onnx", graph, w=noisy, zero=zero), original, X, bits=8)
    assert "another shape than the original's" in result.outputs["where"].note


# Inputs made up.


def made_up(path: Path, **options: Any) -> list[dict[str, Any]]:
    model = load_model(path)
    normalize(model)
    return made_up_samples(model, path, **options)


def shapes(sample: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in sample.items()}


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "phi3", "encoder_decoder", "vit", "mlp"])
def test_usual_architectures_take_what_is_made_up(tmp_path: Path, name: str) -> None:
    model, _ = getattr(graph_models, name)()
    onnx.save(model, tmp_path / "m.onnx")
    samples = made_up(tmp_path / "m.onnx", count=2)
    assert len(samples) >= 2
    assert made_up(tmp_path / "m.onnx", seed=-1)
    result = verify(tmp_path / "m.onnx", tmp_path / "m.onnx", samples, made_up=True)
    assert all(output.judged for output in result.outputs.values())
    again = made_up(tmp_path / "m.onnx", count=2)
    other = made_up(tmp_path / "m.onnx", count=2, seed=1)
    first = next(iter(samples[0]))
    assert all((a[first] == b[first]).all() for a, b in zip(samples, again, strict=True))
    assert any((a[first] != b[first]).any() for a, b in zip(samples, other, strict=False))
    assert (samples[0][first] != samples[1][first]).any()


# What reads an input says which sizes it has: model, its weights, the shapes to be made up.
MODELS = {
    "convolution": ("(float[] x) => (float[] y) { y = Conv(x, w) }", {"w": (4, 3, 5, 5)}, {"x": (1, 3, 8, 8)}),
    "grouped": (
        "(float[n, c, h, k] x) => (float[] y) { y = Conv<group = 2>(x, w) }",
        {"w": (4, 3, 1, 1)},
        {"x": (1, 6, 8, 8)},
    ),
    "linear": ("(float[a, b] x) => (float[] y) { z = Relu(x) y = MatMul(z, w) }", {"w": (6, 4)}, {"x": (1, 6)}),
    "gemm": ("(float[] x) => (float[] y) { y = Gemm<transB = 1>(x, w) }", {"w": (6, 4)}, {"x": (1, 4)}),
    "recurrent": (
        "(float[] x) => (float[] y) { y = GRU<hidden_size = 2>(x, w, r) }",
        {"w": (1, 6, 3), "r": (1, 6, 2)},
        {"x": (1, 8, 3)},
    ),
    "channels last": (
        "(float[n, h, k, c] x) => (float[] y) { t = Transpose<perm = [0, 3, 1, 2]>(x) y = Conv(t, w) }",
        {"w": (4, 3, 5, 5)},
        {"x": (1, 8, 8, 3)},
    ),
    "normalized": (
        "(float[n, c] x) => (float[] y) { z = Sub(x, mean) y = Neg(z) }",
        {"mean": (7,)},
        {"x": (1, 7)},
    ),
    "table": ("(int64[n, s] i) => (float[] y) { y = Gather(w, i) }", {"w": (2, 4)}, {"i": (1, 8)}),
    "offset": (
        "(int64[n, s] i) => (float[] y) { two = Constant<value = int64[1] {2}>() j = Add(i, two) y = Gather(w, j) }",
        {"w": (4, 4)},
        {"i": (1, 8)},
    ),
    "sums": (
        "(float[n, past_len, 3] p, float[n, s, 3] x, float[n, past_len__s, 3] m) => (float[] y)"
        " { a = Concat<axis = 1>(p, x) y = Add(a, m) }",
        {},
        {"p": (1, 0, 3), "x": (1, 8, 3), "m": (1, 8, 3)},
    ),
    "refuses small sizes": (
        "(float[n, c, h, k] x) => (float[] y) { y = Conv(x, w) }",
        {"w": (1, 2, 60, 60)},
        {"x": (1, 2, 64, 64)},
    ),
    "a state whose batch has no name": (
        "(float[?, ?] x, float[2, ?, 3] s) => (float[] y)"
        " { m = ReduceMax<axes = [0, 2], keepdims = 0>(s) c = Unsqueeze(m, one) y = Concat<axis = 1>(x, c) }",
        {"one": 1},
        {"x": (1, 8), "s": (2, 1, 3)},
    ),
    "scalars": (
        "(float a, float[1] b, bool c) => (float[] y) { d = Add(a, b) y = Where(c, d, b) }",
        {},
        {"a": (), "b": (1,), "c": ()},
    ),
    "strings": ("(string[2] x) => (string[2] y) { y = Identity(x) }", {}, {"x": (2,)}),
}


@pytest.mark.parametrize("name", MODELS)
def test_sizes_follow_from_what_reads_an_input(tmp_path: Path, name: str) -> None:
    text, weights, expected = MODELS[name]
    path = save_graph(tmp_path, text, **weights_of(weights))
    assert shapes(made_up(path)[0]) == expected


def weights_of(shapes: dict[str, Any]) -> dict[str, np.ndarray]:
    """Random weights of these shapes; a number stands for the axis of an operator."""
    return {key: random(*shape) if isinstance(shape, tuple) else np.array([shape]) for key, shape in shapes.items()}


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def save_graph(folder: Path, text: str, opset: int = 17, **weights: np.ndarray) -> Path:
    """A model given in ONNX's textual form; `a__b` stands for the size `a + b`."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]> g {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, key) for key, array in weights.items())
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if "__" in dim.dim_param:
                dim.dim_param = dim.dim_param.replace("__", " + ")
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "double", "float8e4m3fn", "int8", "uint64", "bool"])
def test_element_types(tmp_path: Path, kind: str) -> None:
    path = save_graph(tmp_path, f"({kind}[n, 20] x) => ({kind}[n, 20] y) {{ y = Identity(x) }}", opset=19)
    samples = made_up(path)
    (figures,) = verify(path, path, samples, made_up=True).outputs.values()
    assert figures.judged
    assert (figures.cosine_similarity or figures.agreement) == 1
    assert figures.values == 20 * len(samples)
    if kind in ("bfloat16", "float16", "double"):
        assert figures.relative_error == 0


def test_a_condition_that_chooses_what_runs(tmp_path: Path) -> None:
    """A sample rate that the model compares with 16000, and reshapes by: no other number runs."""
    text = """(float[1, s] x, int64 rate) => (float[] y)
    { sixteen = Constant<value = int64 {16000}>()  same = Equal(rate, sixteen)  i = Cast<to = 7>(same)
      j = Sub(i, one)  w = Gather(table, j)  y = Mul(w, x) }"""
    path = save_graph(tmp_path, text, table=random(1, 1), one=np.array(1))
    assert {int(sample["rate"]) for sample in made_up(path)} == {16000}


def test_many_ways_through_a_graph_are_not_all_followed(tmp_path: Path) -> None:
    """60 residual additions have 2**60 ways through them."""
    steps = " ".join(f"r{i} = Relu(y{i}) y{i + 1} = Add(y{i}, r{i})" for i in range(60))
    path = save_graph(tmp_path, f"(float[a, b] y0) => (float[] y) {{ {steps} y = MatMul(y60, w) }}", w=random(6, 4))
    assert shapes(made_up(path)[0]) == {"y0": (1, 6)}


def test_integers_stay_in_their_tables(tmp_path: Path) -> None:
    text = "(int64[n, s] i, int64[n, s] j) => (float[] y) { a = Gather(v, i) b = Gather(w, j) y = Add(a, b) }"
    samples = made_up(save_graph(tmp_path, text, v=random(100, 4), w=random(3, 4)), count=40)
    largest = {name: max(sample[name].max() for sample in samples) for name in "ij"}
    assert 50 < largest["i"] < 100
    assert largest["j"] == 2


def test_defaults_are_left_out(tmp_path: Path) -> None:
    path = save_graph(tmp_path, "(float[n, 4] x, float[4, 2] w) => (float[] y) { y = MatMul(x, w) }", w=random(4, 2))
    assert list(made_up(path)[0]) == ["x"]


def test_sequences_and_optional_inputs(tmp_path: Path) -> None:
    text = "(seq(float[n, 3]) x) => (float[] y) { y = ConcatFromSequence<axis = 0>(x) }"
    (first, *_) = made_up(save_graph(tmp_path, text))
    assert [array.shape for array in first["x"]] == [(1, 3), (1, 3)]


def test_more_samples_where_outputs_are_few(tmp_path: Path) -> None:
    text = "(float[n, 4] x) => (float[] y) { y = MatMul(x, w) }"
    assert len(made_up(save_graph(tmp_path, text, w=random(4, 1)))) == 64
    assert len(made_up(save_graph(tmp_path, text, w=random(4, 100)))) == 2


def test_finite_outputs_are_preferred(tmp_path: Path) -> None:
    """NaN for every negative number: positive ones are found."""
    path = save_graph(tmp_path, "(float[n, 40] x) => (float[] y) { z = Sqrt(x) y = MatMul(z, w) }", w=random(40, 3))
    assert all((sample["x"] >= 0).all() for sample in made_up(path))


def test_a_model_that_takes_nothing_made_up(tmp_path: Path) -> None:
    text = """(float[n, s] x) => (float[] y)
    { shape = Constant<value = int64[2] {7, 11}>()  y = Reshape(x, shape) }"""
    with pytest.raises(CalibrationError, match=r"the model takes none of \d+ .*: give samples with --calibration"):
        made_up(save_graph(tmp_path, text))
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "x": 1]> g (float[2] x) => (float[2] y) { y = x.Own(x) }'
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(CalibrationError, match=r"there is nothing to try them on \(.*onnxruntime cannot run it"):
        made_up(tmp_path / "m.onnx")
    with pytest.raises(CalibrationError, match=r"would take \d+\.\d GB"):
        made_up(save_graph(tmp_path, "(float[1000000, 1000000] x) => (float[] y) { y = Identity(x) }"))


def test_a_model_that_never_ends_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qxcompiler.calibration.made_up._SECONDS_A_RUN", 0.2)
    monkeypatch.setattr("qxcompiler.calibration.made_up._SECONDS", 0.5)
    text = """(float[4] x) => (float[] y) {
      none = Constant<value_int = 9000000000000000000>()  yes = Constant<value = bool {1}>()
      y = Loop(none, yes, x) <body = b (int64 i, bool go, float[4] a) => (bool on, float[4] c)
        { on = Identity(go)  c = Sin(a) }>
    }"""
    with pytest.raises(CalibrationError, match=r"no more than 0.5 s are spent"):
        made_up(save_graph(tmp_path, text))


def test_made_up_inputs_keep_the_rank_that_is_declared_of_an_output(tmp_path: Path) -> None:
    """A product with the weight on the left takes any rank; rewrites rely on the one that the output has."""
    b = graph_models.Builder()
    y = b.op("MatMul", b.weight(48, 8), "x")
    model = b.model({"x": (onnx.TensorProto.FLOAT, None)}, [y])
    declared = onnx.helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, [1, 8, 48, 8])
    model.graph.output[0].CopyFrom(declared)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    graph = load_model(path)
    normalize(graph)
    assert {sample["x"].ndim for sample in made_up_samples(graph, path)} == {4}
