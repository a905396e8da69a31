"""Attention that becomes one operator: found in what exporters write, and computing what stood there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import graph_models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graph_models import Builder
from onnx import TensorProto, helper
from operator_models import available_isas, relative_error, session_of
from test_models_families import CAUSAL, ENCODER_DECODERS, ENCODERS, HEADS, SLOW_HEADS
from tiny_transformers import VOCABULARY, save_model

from qxcompiler.calibration.made_up import made_up_samples
from qxcompiler.evaluation.running import Runner
from qxcompiler.graph import load_model, normalize, raise_opset
from qxcompiler.passes.fuse_attention import FuseAttention
from qxcompiler.passes.share_cache import ShareCache
from qxcompiler_runtime.caches import SHARED_CACHE
from qxcompiler_runtime.decoder import Decoder

BEST = available_isas()[-1]
slow = pytest.mark.slow


def fused(proto: onnx.ModelProto | Path, samples: Any = ()) -> tuple[ir.Model, list[str]]:
    """The model with its attention in operators of ours; what was said of others."""
    model = load_model(proto)
    normalize(model)
    raise_opset(model)
    fuse = FuseAttention(samples)
    fuse(model)
    ShareCache()(model)
    return model, fuse.notes


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph if node.domain == "qxc")


def check_equal(proto: onnx.ModelProto, model: ir.Model, feeds: dict[str, np.ndarray]) -> None:
    """With the library and without it, the fused model gives what the original gives."""
    expected = session_of(proto.SerializeToString(), None).run(None, feeds)
    after = ir.to_proto(model)
    onnx.checker.check_model(after)
    for isa in (BEST, None):
        for y, reference in zip(session_of(after.SerializeToString(), isa).run(None, feeds), expected, strict=True):
            assert y.shape == reference.shape
            assert relative_error(y, reference) <= 1e-5


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_other_structures(name: str) -> None:
    proto, feeds = getattr(graph_models, name)()
    model, notes = fused(proto, [feeds])
    assert sum(operators(model).values()) == 2 and not notes
    check_equal(proto, model, feeds)


def attention(change: str = "", limit: float = 5) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """One attention with a mask and a softcap; `change` makes it something else."""
    b, heads, size = Builder(), 2, 8
    q, k, v = (b.heads(b.linear("x", 16, 16), heads) for _ in range(3))
    k = b.op("Transpose", k, perm=[0, 1, 3, 2])
    scores = b.op("Div", b.op("MatMul", q, k), b.scalar(size**0.5))
    scores = b.op("Mul", b.op("Tanh", b.op("Div", scores, b.scalar(5))), b.scalar(limit))
    if change == "twice":
        scores = b.op("Mul", scores, scores)
    scores = b.op("Add", scores, "mask")
    if change == "scale after mask":
        scores = b.op("Mul", scores, b.scalar(2))
    weights = b.op("Softmax", scores, axis=2 if change == "axis" else -1)
    y = b.op("MatMul", weights, v)
    if change == "heads":
        y = b.op("Gather", y, b.ints(1, 0), axis=1)
    y = b.merge(y, 16)
    proto = b.model(
        {"x": (TensorProto.FLOAT, ["batch", "length", 16]), "mask": (TensorProto.FLOAT, ["batch", 1, 1, "length"])}, [y]
    )
    feeds = {"x": b.random.standard_normal((2, 5, 16)), "mask": b.random.standard_normal((2, 1, 1, 5))}
    return proto, {name: array.astype(np.float32) for name, array in feeds.items()}


@pytest.mark.parametrize("limit", [5, 4])
def test_softcap_and_mask(limit: float) -> None:
    """limit * tanh(scores / 5): where the limit is not 5, the scale makes up for it."""
    proto, feeds = attention(limit=limit)
    model, notes = fused(proto)
    assert operators(model) == {"Attention": 1} and not notes
    node = next(node for node in model.graph if node.domain == "qxc")
    assert node.attributes["softcap"].as_float() == limit
    assert node.attributes["scale"].as_float() == pytest.approx(limit / 5 * 8**-0.5)
    check_equal(proto, model, feeds)


@pytest.mark.parametrize("change", ["scale after mask", "axis", "twice", "heads"])
def test_what_is_like_attention_is_computed_as_it_stands(change: str) -> None:
    """Where the reading of the graph is refused, or fits part of it, the result is the same."""
    proto, feeds = attention(change)
    model, notes = fused(proto)
    assert (sum(operators(model).values()) == 0) == bool(notes)
    if change != "heads":
        assert len(notes) == 1 and "is computed node by node" in notes[0]
    check_equal(proto, model, feeds)


def test_a_wrong_reading_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison on random numbers sees what the reading does not."""
    from qxcompiler.passes import fuse_attention

    def misread(model: Any, shapes: Any) -> Any:
        for node, found in find(model, shapes):
            found.scale *= 1.01
            yield node, found

    find = fuse_attention.find_attentions
    monkeypatch.setattr(fuse_attention, "find_attentions", misread)
    model, notes = fused(attention()[0])
    assert not operators(model)
    assert "it computes something else than the operator would" in notes[0]


def test_rows_that_a_mask_leaves_nothing_give_zeros() -> None:
    b = Builder()
    q, k, v = (b.heads(b.linear("x", 16, 16), 2) for _ in range(3))
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2]))
    mask = b.op("Where", "kept", b.scalar(0), b.scalar(-np.inf))
    weights = b.op("Softmax", b.op("Add", scores, mask), axis=-1)
    weights = b.op("Where", b.op("IsNaN", weights), b.scalar(0), weights)
    inputs = {
        "x": (TensorProto.FLOAT, ["batch", "length", 16]),
        "kept": (TensorProto.BOOL, ["batch", 1, "length", "length"]),
    }
    proto = b.model(inputs, [b.merge(b.op("MatMul", weights, v), 16)])
    kept = np.tril(np.ones((2, 1, 4, 4), bool))
    kept[1, :, :2] = False
    model, notes = fused(proto)
    assert operators(model) == {"Attention": 1} and not notes
    check_equal(proto, model, {"x": b.random.standard_normal((2, 4, 16)).astype(np.float32), "kept": kept})


def export(name: str, model_class: str, model_type: str, settings: dict[str, Any], folder: Path) -> Path:
    pytest.importorskip("optimum.exporters.onnx")
    from qxcompiler.models import export as exported

    if name in ("vit", "deit"):
        settings = settings | {"image_size": 32}
    save_model(folder / "hf", model_class, model_type, settings)
    return Path(exported(folder / "hf", folder / "onnx"))


LANGUAGE = {name: (name, "AutoModelForCausalLM", settings) for name, settings in CAUSAL.items() if name != "bloom"}
OTHERS = {name: (name, "AutoModel", settings) for name, settings in ENCODERS.items()}
OTHERS |= {
    f"{name} for a task": entry[:3]
    for name, entry in (HEADS | SLOW_HEADS).items()
    if name not in ("resnet", "convnext", "mobilenet", "token", "question")
}
OTHERS |= {
    name: (name, "AutoModelForSpeechSeq2Seq" if name == "whisper" else "AutoModelForSeq2SeqLM", settings)
    for name, settings in ENCODER_DECODERS.items()
    if name not in ("mt5", "mbart", "m2m_100")
}
QUICK = {"llama", "bert", "t5"}


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=slow) for name in OTHERS])
def test_every_attention_of_encoders_and_of_encoders_with_decoders(name: str, tmp_path: Path) -> None:
    model_type, model_class, settings = OTHERS[name]
    folder = export(name.split()[0], model_class, model_type, settings, tmp_path)
    for file in sorted(folder.glob("*.onnx")):
        samples = made_up_samples(load_model(file), file)
        model, notes = fused(file, samples)
        assert operators(model) and not notes
        for sample in samples:
            check_equal(onnx.load(file), model, sample)


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=slow) for name in LANGUAGE])
def test_every_attention_of_decoders(name: str, tmp_path: Path) -> None:
    """In one piece and token by token, with a batch padded on the left, in a growing cache and in place."""
    model_type, model_class, settings = LANGUAGE[name]
    folder = export(name, model_class, model_type, settings, tmp_path)
    model, notes = fused(folder / "model.onnx")
    assert sum(operators(model).values()) == 2 and not notes
    assert model.metadata_props[SHARED_CACHE] == "1"
    (folder / "fused.onnx").write_bytes(ir.to_proto(model).SerializeToString())
    ids = np.random.default_rng(0).integers(3, VOCABULARY, (3, 11))

    original = session_of((folder / "model.onnx").read_bytes(), None)
    mask = np.ones_like(ids)
    mask[0, :4] = mask[2, :1] = 0
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": np.maximum(mask.cumsum(1) - 1, 0)}
    heads, size = next(value.shape[1::2] for value in original.get_inputs() if value.name.startswith("past"))
    past = np.zeros((3, heads, 0, size), np.float32)
    feeds = {v.name: given.get(v.name, past) for v in original.get_inputs()}
    expected = original.run(None, feeds)
    for isa in (BEST, None):
        result = session_of((folder / "fused.onnx").read_bytes(), isa)
        for y, reference in zip(result.run(None, feeds), expected, strict=True):
            seen = ... if y.ndim == 4 else mask.astype(bool)
            assert relative_error(y[seen], reference[seen]) <= 2e-6

    whole, pieces = (Decoder(Runner(folder / f"{name}.onnx")) for name in ("model", "fused"))
    assert pieces.is_in_place and not whole.is_in_place
    for first, last in ((0, 5), (5, 6), (6, 9), (9, 10), (10, 11)):
        logits = pieces.step(ids[:, first:last].tolist())
    assert relative_error(logits, whole.step(ids.tolist())) <= 2e-6


def test_room_is_doubled_when_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qxcompiler_runtime.decoder._LEAST_ROOM", 4)
    folder = export("llama", "AutoModelForCausalLM", "llama", CAUSAL["llama"], tmp_path)
    model, _ = fused(folder / "model.onnx")
    (folder / "fused.onnx").write_bytes(ir.to_proto(model).SerializeToString())
    growing, in_place = (Decoder(Runner(folder / f"{name}.onnx")) for name in ("model", "fused"))
    rooms = []
    for token in range(3, 23):
        expected, found = growing.step([[token]]), in_place.step([[token]])
        assert np.allclose(expected, found, atol=1e-5)
        rooms.append(in_place.room)
    assert sorted(set(rooms)) == [4, 10, 22]


def test_a_past_that_something_else_reads_is_not_shared(tmp_path: Path) -> None:
    proto = onnx.load(export("llama", "AutoModelForCausalLM", "llama", CAUSAL["llama"], tmp_path) / "model.onnx")
    proto.graph.node.append(helper.make_node("ReduceSum", ["past_key_values.1.value"], ["sum"], keepdims=0))
    proto.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, []))
    model, notes = fused(proto)
    assert operators(model) == {"RotaryCachedAttention": 2} and not notes
    assert SHARED_CACHE not in model.metadata_props
