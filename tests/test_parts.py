"""A model run part after part gives the numbers of the whole."""

from __future__ import annotations

from pathlib import Path

import graph_models
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import qxcompiler
from qxcompiler.calibration.parts import FrugalModel
from qxcompiler_runtime import session

pytestmark = pytest.mark.skipif(
    tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 21), reason="an older onnxruntime runs models whole"
)

RNG = np.random.default_rng(0)
IN_A_BODY = """(float[n, 16] x, bool up) => (float[n, 16] z)
{
  a = MatMul(x, v)
  y = If(up) <then_branch = t () => (float[n, 16] b) { b = MatMul(a, w) },
              else_branch = e () => (float[n, 16] c) { c = Sub(a, x) }>
  z = MatMul(y, u)
}"""
SHARED_CONSTANT = """(float[n, 16] x, float[16, 16] w) => (float[n, 16] z, float[16, 16] t, float[n, 16] x)
{ t = Transpose<perm = [1, 0]>(w) a = MatMul(x, t) b = MatMul(a, v) c = MatMul(b, t) z = Add(c, x) }"""
A_SEQUENCE = """(float[n, 16] x) => (float[] z)
{ a = MatMul(x, v) s = SplitToSequence<axis = 1>(a) b = MatMul(a, w)
  c = ConcatFromSequence<axis = 1>(s) z = Sub(b, c) }"""
BFLOAT16 = """(float[n, 16] x) => (float[n, 16] z)
{ a = MatMul(x, v) h = Cast<to = 16>(a) b = MatMul(a, w) f = Cast<to = 1>(h) z = Add(b, f) }"""
FLOAT8 = BFLOAT16.replace("to = 16", "to = 17")
RANDOM = """(float[n, 16] x) => (float[n, 16] z)
{ a = MatMul(x, v) r = RandomNormalLike(a) b = MatMul(a, w) z = Add(b, r) }"""


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qxcompiler.calibration.parts._PART_BYTES", 1)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    """Its weights in a file beside it."""
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=256)
    return folder / "m.onnx"


def written(text: str, folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    model = onnx.parser.parse_model('<ir_version: 9, opset_import: ["": 19]> g ' + text)
    weights = (RNG.standard_normal((16, 16)).astype(np.float32) for _ in "uvw")
    model.graph.initializer.extend(map(numpy_helper.from_array, weights, "uvw"))
    feeds = {"x": RNG.standard_normal((3, 16)).astype(np.float32), "up": np.array(True)}
    return saved(model, folder), {value.name: feeds[value.name] for value in model.graph.input if value.name in feeds}


def check_same(model: FrugalModel, whole: object, feeds: dict[str, np.ndarray], parts: int | None = None) -> None:
    names = [value.name for value in model.session.get_outputs()]
    expected = whole.run(names, feeds)
    prepared = model.prepare(names, [feeds, feeds])
    for found in (model.run(names, feeds), *map(prepared, (1, 0, 1))):
        for y, y_ref in zip(found, expected, strict=True):
            np.testing.assert_allclose(y, y_ref, rtol=1e-5, atol=1e-6)
    assert len(model._parts) > 5 if parts is None else len(model._parts) == parts


@pytest.mark.parametrize("make", [graph_models.llama, graph_models.bert, graph_models.encoder_decoder])
def test_a_model_and_what_it_is_compiled_to(tmp_path, make):
    model, feeds = make()
    path = saved(model, tmp_path)
    check_same(FrugalModel(path), session(path), feeds)
    qxcompiler.compile(path, "cpu-x86", tmp_path / "out", weights="int8g32", head="int8g32", quantizer="rtn")
    compiled = tmp_path / "out" / "model.onnx"
    stock = session(compiled, optimize=False, library=False)
    check_same(FrugalModel(compiled, library=False), stock, feeds)


@pytest.mark.parametrize(
    ("text", "parts"),
    [(IN_A_BODY, 3), (SHARED_CONSTANT, 4), (A_SEQUENCE, 3), (BFLOAT16, 3), (FLOAT8, 0)],
    ids=["a weight in a body", "a constant of two parts", "a sequence", "bfloat16", "float8, which numpy has not"],
)
def test_what_passes_between_parts(tmp_path, text, parts):
    path, feeds = written(text, tmp_path)
    check_same(FrugalModel(path), session(path), feeds, parts)


def test_samples_of_different_sizes_are_prepared_together(tmp_path):
    path, feeds = written(SHARED_CONSTANT, tmp_path)
    samples = [feeds | {"x": RNG.standard_normal((rows, 16)).astype(np.float32)} for rows in (1, 5, 3)]
    model, whole = FrugalModel(path), session(path)
    prepared = model.prepare(["z", "x"], samples)
    assert len(model._parts) == 4
    for index in (2, 0, 1, 2):
        for y, y_ref in zip(prepared(index), whole.run(["z", "x"], samples[index]), strict=True):
            np.testing.assert_allclose(y, y_ref, rtol=1e-5, atol=1e-6)


def test_a_model_that_draws_random_numbers_is_run_whole(tmp_path):
    """A session opened anew would draw the same ones again, and hide that they change."""
    path, feeds = written(RANDOM, tmp_path)
    model = FrugalModel(path)
    once, again = (model.run(["z"], feeds)[0] for _ in range(2))
    assert not np.array_equal(once, again)
