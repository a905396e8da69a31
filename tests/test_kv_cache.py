"""Keys and values in fewer bits: the format, the pass, and whole models that keep them so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from attention_models import kept_rows, numbers_of
from tiny_transformers import GROUPED, SMALL, VOCABULARY, save_model
from typer.testing import CliRunner

import qxcompiler
from qxcompiler.cli import app
from qxcompiler.errors import ModelError, UnsupportedByTargetError, UsageError
from qxcompiler.evaluation.running import Runner
from qxcompiler.formats import CACHE_FORMATS
from qxcompiler_runtime.decoder import Decoder

pytest.importorskip("optimum.exporters.onnx")
OPTIONS = {"weights": "int8g16", "activations": "a32", "quantizer": "rtn"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_model(folder / "hf", "AutoModelForCausalLM", "llama", GROUPED)
    return qxcompiler.export(folder / "hf", folder / "onnx")


@pytest.fixture(scope="module")
def compiled(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, Path]:
    folder = tmp_path_factory.mktemp("compiled")
    for kv in (None, *CACHE_FORMATS):
        qxcompiler.compile(llama / "model.onnx", "cpu-x86", folder / str(kv), kv=kv, **OPTIONS)
    return {kv: folder / str(kv) for kv in (None, *CACHE_FORMATS)}


@pytest.mark.parametrize("name", CACHE_FORMATS)
@pytest.mark.parametrize("size", [1, 7, 8, 20, 64, 96])
def test_rows_are_encoded_by_the_definition(name: str, size: int) -> None:
    draws = np.random.default_rng(size)
    rows = draws.standard_normal((3, 50, size)) * np.exp(5 * draws.standard_normal((3, 50, 1)))
    rows = rows.astype(np.float32)
    rows[0, :4] = [[0.0], [1e-41], [np.nan], [np.inf]]
    fmt = CACHE_FORMATS[name]
    found, wanted = fmt.encode(rows), kept_rows(rows, fmt.bits)
    assert found.shape == (3, 50, fmt.row_bytes(size))
    if not fmt.rotated:
        np.testing.assert_array_equal(found, wanted)
        return
    close, half_step = numbers_of(found, fmt.bits, size)
    exact, _ = numbers_of(wanted, fmt.bits, size)
    np.testing.assert_array_equal(np.isnan(close), np.isnan(exact))
    assert np.mean(found == wanted) > 0.99  # rotated sums differ by their order
    assert np.nanmax(np.abs(close - exact) / np.maximum(half_step, 1e-30)) <= 2.01


@pytest.mark.parametrize("kv", CACHE_FORMATS)
def test_a_model_keeps_rows_of_bytes(kv: str, compiled: dict[str | None, Path]) -> None:
    model = onnx.load(compiled[kv] / "model.onnx", load_external_data=False)
    row = CACHE_FORMATS[kv].row_bytes(8)
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past", "present")):
            assert value.type.tensor_type.elem_type == onnx.TensorProto.UINT8
            assert [dim.dim_value for dim in value.type.tensor_type.shape.dim][1::2] == [2, row]
    report = json.loads((compiled[kv] / "report.json").read_text())
    assert (report["kv"], report["kv_bytes_per_token"]) == (kv, 2 * 2 * 2 * row)
    assert report["verification"] is not None
    assert f"kv: {kv}" in (compiled[kv] / "compile.yaml").read_text()


@pytest.mark.parametrize(("kv", "limit"), [("int8", 0.02), ("int4", 0.2)])
def test_logits_are_near_and_do_not_depend_on_pieces(kv: str, limit: float, compiled: dict[str | None, Path]) -> None:
    ids = np.random.default_rng(1).integers(3, VOCABULARY, (3, 14))
    runner, plain = (Runner(compiled[each] / "model.onnx") for each in (kv, None))
    whole, expected = Decoder(runner).step_of_each(ids), Decoder(plain).step_of_each(ids)
    off = np.linalg.norm(whole - expected) / np.linalg.norm(expected)
    assert 0 < off < limit
    for library in (True, False):
        pieces = Decoder(Runner(compiled[kv] / "model.onnx", library=library))
        assert pieces.is_in_place
        found = [pieces.step_of_each(ids[:, first:last]) for first, last in ((0, 6), (6, 7), (7, 11), (11, 14))]
        np.testing.assert_allclose(np.concatenate(found, 1), whole, atol=1e-4 if kv == "int8" else 2e-2)


def test_a_batch_with_padding_on_the_left(compiled: dict[str | None, Path]) -> None:
    """A row gives the same with padding before it as alone: the growing cache of a plain session."""
    session = Runner(compiled["int8"] / "model.onnx").session
    ids = np.random.default_rng(1).integers(3, VOCABULARY, (3, 6))
    mask = np.array([[0, 0, 1, 1, 1, 1], [1] * 6, [0, 1, 1, 1, 1, 1]])
    pasts = {v.name: v.shape[3] for v in session.get_inputs() if v.name.startswith("past")}

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": np.maximum(mask.cumsum(1) - 1, 0)}
        feeds |= {name: np.zeros((len(ids), 2, 0, row), np.uint8) for name, row in pasts.items()}
        return session.run(["logits"], {v.name: feeds[v.name] for v in session.get_inputs()})[0]

    together = run(ids, mask)
    for row, padding in enumerate((2, 0, 1)):
        alone = run(ids[row : row + 1, padding:], np.ones((1, 6 - padding), np.int64))
        np.testing.assert_allclose(together[row, padding:], alone[0], atol=1e-4)


def test_evaluation_in_chunks(compiled: dict[str | None, Path], tmp_path: Path) -> None:
    words = np.random.default_rng(2).integers(3, VOCABULARY - 1, 300)
    (tmp_path / "text.txt").write_text(" ".join(f"w{word}" for word in words))
    arguments = [str(compiled["int8"] / "model.onnx"), "--text", str(tmp_path / "text.txt"), "--length", "30"]
    found = [
        json.loads(CliRunner().invoke(app, ["eval", *arguments, "--windows", "3", "--json", *chunk]).stdout)
        for chunk in ([], ["--chunk", "1"], ["--chunk", "7"])
    ]
    assert found[0]["tokens"] == 87
    for each in found[1:]:
        assert each["perplexity"] == pytest.approx(found[0]["perplexity"], rel=1e-4)


def test_what_cannot_keep_them_so(llama: Path, tmp_path: Path) -> None:
    def refused(error: type[Exception], message: str, target: str = "cpu-x86", **options: object) -> None:
        with pytest.raises(error, match=message):
            qxcompiler.compile(llama / "model.onnx", target, tmp_path / "out", **(OPTIONS | options))
        assert not (tmp_path / "out" / "model.onnx").exists()

    refused(UsageError, "--kv int8: needs attention in one operator: leave out --plain", kv="int8", plain=True)
    refused(UnsupportedByTargetError, "npu-int8: holds no keys and values in int4", "npu-int8", kv="int4")
    refused(UsageError, "--kv int8: .*: choose a target of dialect qxc", "npu-int8-qdq", kv="int8")
    refused(ModelError, "keeps keys and values as float32: leave out --kv", kv="float16")
    qxcompiler.compile(llama / "model.onnx", "cpu-x86", tmp_path / "same", kv="float32", **OPTIONS)
    assert json.loads((tmp_path / "same" / "report.json").read_text())["kv"] == "float32"


def test_a_past_that_something_else_reads(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before any weight is quantized."""
    monkeypatch.delattr("qxcompiler.compiler._Compiler._quantize")
    proto = onnx.load(llama / "model.onnx")
    proto.graph.node.append(onnx.helper.make_node("ReduceSum", ["past_key_values.1.value"], ["sum"], keepdims=0))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, []))
    with pytest.raises(ModelError, match=r"'past_key_values.1.value' is not an attention operator's alone: leave out"):
        qxcompiler.compile(proto, "cpu-x86", tmp_path / "out", kv="int8", **OPTIONS)


def test_a_model_that_keeps_nothing(tmp_path: Path) -> None:
    save_model(tmp_path / "hf", "AutoModel", "bert", SMALL)
    folder = qxcompiler.export(tmp_path / "hf", tmp_path / "onnx")
    with pytest.raises(ModelError, match="keeps no keys and values: leave out --kv int8"):
        qxcompiler.compile(folder / "model.onnx", "cpu-x86", tmp_path / "out", kv="int8", **OPTIONS)
