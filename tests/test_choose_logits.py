"""Logits of some tokens alone, where a caller asks for no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from operator_models import available_isas, relative_error, session_of
from test_passes_attention import CAUSAL, export
from tiny_transformers import VOCABULARY

from qxcompiler.evaluation.running import Runner
from qxcompiler.graph import load_model, normalize, raise_opset
from qxcompiler.passes.choose_logits import ChooseLogits
from qxcompiler.passes.fuse_attention import FuseAttention
from qxcompiler.passes.fuse_norm import FuseNorm
from qxcompiler.passes.share_cache import ShareCache
from qxcompiler_runtime.caches import LOGITS_FROM
from qxcompiler_runtime.decoder import Decoder


def rewritten(path: Path) -> ir.Model:
    model = load_model(path)
    normalize(model)
    raise_opset(model)
    for each in (FuseAttention(), FuseNorm(), ShareCache(), ChooseLogits()):
        each(model)
    return model


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_some_tokens(name: str, tmp_path: Path) -> None:
    """All by default, as before; from a token on; the last alone, to which Gemma's softcap is applied too."""
    path = export(name, "AutoModelForCausalLM", name, CAUSAL[name], tmp_path) / "model.onnx"
    after = ir.to_proto(rewritten(path)).SerializeToString()
    ids = np.random.default_rng(0).integers(3, VOCABULARY, (2, 7))
    original = session_of(path.read_bytes(), None)
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    given["position_ids"] = np.broadcast_to(np.arange(7), ids.shape)
    heads, size = next(value.shape[1::2] for value in original.get_inputs() if value.name.startswith("past"))
    empty = np.zeros((2, heads, 0, size), np.float32)
    feeds = {value.name: given.get(value.name, empty) for value in original.get_inputs()}
    expected = original.run(None, feeds)
    for isa in (available_isas()[-1], None):
        session = session_of(after, isa)
        assert LOGITS_FROM not in {value.name for value in session.get_inputs()}  # who feeds all inputs feeds not this
        for start, rows in ((None, slice(None)), (0, slice(None)), (-1, slice(-1, None)), (3, slice(3, None))):
            chosen = {} if start is None else {LOGITS_FROM: np.array([start])}
            logits, *rest = session.run(None, feeds | chosen)
            assert relative_error(logits, expected[0][:, rows]) <= 5e-6
            for y, reference in zip(rest, expected[1:], strict=True):
                assert relative_error(y, reference) <= 5e-6


def test_a_decoder_asks_for_the_last_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export("llama", "AutoModelForCausalLM", "llama", CAUSAL["llama"], tmp_path) / "model.onnx"
    (tmp_path / "rewritten.onnx").write_bytes(ir.to_proto(rewritten(path)).SerializeToString())
    shapes = []

    def run(self: Decoder, *arguments: Any, **more: Any) -> np.ndarray:
        shapes.append((logits := compute(self, *arguments, **more)).shape[1])
        return logits

    compute = Decoder._run
    monkeypatch.setattr(Decoder, "_run", run)
    before, after = (Decoder(Runner(each)) for each in (path, tmp_path / "rewritten.onnx"))
    for ids in ([3, 4, 5, 6], [7]):
        np.testing.assert_allclose(after.step([ids]), before.step([ids]), atol=1e-5)
    np.testing.assert_allclose(after.step_of_each([[8, 9]]), before.step_of_each([[8, 9]]), atol=1e-5)
    assert shapes == [1, 4, 1, 1, 2, 2]  # after and before, in turn
    assert not before.chooses_logits and after.chooses_logits


def test_a_model_without_a_past_stays(tmp_path: Path) -> None:
    import graph_models

    proto, _ = graph_models.gpt2()
    model = load_model(proto)
    normalize(model)
    assert not ChooseLogits()(model).modified
