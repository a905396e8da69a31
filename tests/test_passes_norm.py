"""Norms that become one operator: found in what exporters write, and computing what stood there."""

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
from test_passes_attention import LANGUAGE, OTHERS, QUICK, export, slow

from qxcompiler.calibration.made_up import made_up_samples
from qxcompiler.cost import Phase, workload
from qxcompiler.graph import load_model, normalize, raise_opset
from qxcompiler.passes.fuse_attention import FuseAttention
from qxcompiler.passes.fuse_norm import FuseNorm

BEST = available_isas()[-1]
WIDTH = 24
WHOLE_NORMS = ("LayerNormalization", "RMSNormalization")


def fused(proto: onnx.ModelProto | Path, samples: Any = (), attention: bool = False) -> ir.Model:
    """The model with its norms, and its attention if asked, in operators of ours."""
    model = load_model(proto)
    normalize(model)
    raise_opset(model)
    if attention:
        FuseAttention(samples)(model)
    FuseNorm(samples)(model)
    return model


def norms(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph if "Norm" in node.op_type)


def norms_left(model: ir.Model) -> list[ir.Node]:
    """Norms in the model's own operators: whole, or means that epsilon is added to."""
    averages = [node for node in model.graph if node.op_type == "ReduceMean"]
    readers = {node: {reader.op_type for reader in node.outputs[0].consumers()} for node in averages}
    decomposed = [node for node in averages if "Add" in readers[node]]
    return [node for node in model.graph if node.op_type in WHOLE_NORMS] + decomposed


def check_equal(proto: onnx.ModelProto, model: ir.Model, feeds: dict[str, np.ndarray], tolerance: float = 2e-6) -> None:
    """With the library and without it, the fused model gives what the original gives."""
    expected = session_of(proto.SerializeToString(), None).run(None, feeds)
    after = ir.to_proto(model)
    onnx.checker.check_model(after)
    for isa in (BEST, None):
        for y, reference in zip(session_of(after.SerializeToString(), isa).run(None, feeds), expected, strict=True):
            assert y.dtype == reference.dtype
            assert relative_error(y.astype(np.float64), reference.astype(np.float64)) <= tolerance


def one(b: Builder, output: str, *more: str, dtype: int = TensorProto.FLOAT) -> tuple[onnx.ModelProto, dict]:
    """A model of two inputs [batch, length, WIDTH], and numbers for them."""
    names = ["x", "y"]
    used = [name for name in names if any(name in node.input for node in b.nodes)]
    proto = b.model({name: (dtype, ["batch", "length", WIDTH]) for name in used}, [output, *more])
    array = np.float16 if dtype == TensorProto.FLOAT16 else np.float32
    return proto, {name: b.random.standard_normal((2, 5, WIDTH)).astype(array) for name in used}


ROOTS = {
    "one by a root": lambda b, x, s: b.op("Mul", x, b.op("Div", b.scalar(1), b.op("Sqrt", s))),
    "reciprocal of a root": lambda b, x, s: b.op("Mul", b.op("Reciprocal", b.op("Sqrt", s)), x),
    "by a root": lambda b, x, s: b.op("Div", x, b.op("Sqrt", s)),
    "to the power of -1/2": lambda b, x, s: b.op("Mul", x, b.op("Pow", s, b.scalar(-0.5))),
    "by a power of 1/2": lambda b, x, s: b.op("Div", x, b.op("Pow", s, b.scalar(0.5))),
}
SQUARES = {
    "power": lambda b, x: b.op("Pow", x, b.ints(2)),
    "product": lambda b, x: b.op("Mul", x, x),
}


def decomposed(b: Builder, x: str, root: str, square: str, centered: bool, epsilon: float = 1e-5) -> str:
    if centered:
        x = b.op("Sub", x, b.op("ReduceMean", x, b.ints(2)))
    mean = b.op("ReduceMean", SQUARES[square](b, x), b.ints(-1))
    return ROOTS[root](b, x, b.op("Add", b.scalar(epsilon), mean))


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("root", ROOTS)
def test_what_exporters_write(root: str, square: str, centered: bool) -> None:
    b = Builder()
    y = decomposed(b, b.op("Add", "x", "y"), root, square, centered, epsilon=1e-3)
    y = b.op("Mul", y, b.op("Add", b.weight(WIDTH), b.scalar(1)))  # as in Gemma
    if centered:
        y = b.op("Add", b.weight(1, 1, WIDTH), y)
    proto, feeds = one(b, y)
    model = fused(proto)
    assert norms(model) == {"SkipLayerNorm" if centered else "SkipRMSNorm": 1}
    assert model.graph.num_nodes() == 1
    assert model.graph[0].attributes["epsilon"].as_float() == pytest.approx(1e-3)
    check_equal(proto, model, feeds)


WHOLE = {
    "LayerNormalization": ("LayerNorm", 18, 3),
    "LayerNormalization without bias": ("LayerNorm", 18, 2),
    "RMSNormalization": ("RMSNorm", 23, 2),
    "SimplifiedLayerNormalization": ("RMSNorm", 18, 2),
}


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("name", WHOLE)
def test_one_operator(name: str, skip: bool) -> None:
    fused_name, opset, inputs = WHOLE[name]
    b = Builder(opset)
    x = b.op("Add", "x", "y") if skip else "x"
    rows = [b.weight(WIDTH) for _ in range(inputs - 1)]
    proto, feeds = one(b, b.op(name.split()[0], x, *rows, epsilon=1e-3, axis=2))
    typed = helper.make_tensor_value_info(proto.graph.output[0].name, TensorProto.FLOAT, ["batch", "length", WIDTH])
    proto.graph.output[0].CopyFrom(typed)  # what ONNX cannot infer of onnxruntime's own operator
    model = fused(proto)
    assert norms(model) == {f"{'Skip' if skip else ''}{fused_name}": 1}
    check_equal(proto, model, feeds)


def test_float16_between_casts() -> None:
    """As Llama computes it: float32 within, the gain in float16 outside."""
    b = Builder()
    total = b.op("Add", "x", "y")
    wide = b.op("Cast", total, to=TensorProto.FLOAT)
    y = b.op("Cast", decomposed(b, wide, "by a root", "power", False), to=TensorProto.FLOAT16)
    y = b.op("Mul", b.constant(b.random.standard_normal(WIDTH).astype(np.float16)), y)
    proto, feeds = one(b, y, total, dtype=TensorProto.FLOAT16)
    model = fused(proto)
    assert norms(model) == {"SkipRMSNorm": 1} and model.graph.num_nodes() == 1
    check_equal(proto, model, feeds, tolerance=1e-3)


def test_float32_after_float16() -> None:
    """The operator has one type: a result that stays in float32 is that of the cast."""
    b = Builder()
    wide = b.op("Cast", b.op("Add", "x", "y"), to=TensorProto.FLOAT)
    proto, feeds = one(b, decomposed(b, wide, "by a root", "power", False), dtype=TensorProto.FLOAT16)
    model = fused(proto)
    assert norms(model) == {"RMSNorm": 1}
    check_equal(proto, model, feeds)


def test_heads_of_queries() -> None:
    b = Builder()
    by_head = b.op("Reshape", "x", b.ints(0, 0, 3, WIDTH // 3))
    proto, feeds = one(b, b.rms_norm(by_head, WIDTH // 3))
    model = fused(proto)
    assert norms(model) == {"RMSNorm": 1}
    check_equal(proto, model, feeds)


def test_a_sum_that_others_read_and_two_norms() -> None:
    b = Builder()
    total = b.op("Add", "x", "y")
    first, second = b.layer_norm(total, WIDTH), b.rms_norm(total, WIDTH)
    proto, feeds = one(b, b.op("Add", first, second), total, b.op("Shape", total))
    model = fused(proto)
    assert norms(model) == {"SkipLayerNorm": 1, "RMSNorm": 1}
    check_equal(proto, model, feeds)


def test_casts_to_the_type_that_is_there_go() -> None:
    """As exporters write them for `x.to(float32)` of a model in float32."""
    b = Builder()
    total = b.op("Cast", b.op("Add", "x", "y"), to=TensorProto.FLOAT)
    proto, feeds = one(b, b.rms_norm(b.op("Add", total, b.rms_norm(total, WIDTH)), WIDTH))
    model = fused(proto)
    assert norms(model) == {"SkipRMSNorm": 2} and model.graph.num_nodes() == 2
    check_equal(proto, model, feeds)


def test_a_sum_that_is_broadcast_stays() -> None:
    b = Builder()
    table = b.op("ReduceSum", "y", b.ints(0), keepdims=1)  # [1, length, WIDTH]
    proto, feeds = one(b, b.rms_norm(b.op("Add", "x", table), WIDTH))
    model = fused(proto)
    assert norms(model) == {"RMSNorm": 1}
    check_equal(proto, model, feeds)


def test_shapes_asked_in_between() -> None:
    """What asks for the shape of a value that goes is given that of the result."""
    b = Builder()
    inner = decomposed(b, "x", "by a root", "power", False)
    proto, feeds = one(b, b.op("Mul", inner, b.weight(WIDTH)), b.op("Shape", inner))
    model = fused(proto)
    assert norms(model) == {"RMSNorm": 1} and model.graph.num_nodes() == 2
    check_equal(proto, model, feeds)


def other(b: Builder, change: str) -> str:
    axis = -2 if change == "another axis" else -1
    x = "x"
    mean = b.op("ReduceMean", b.op("Pow", x, b.scalar(3 if change == "cube" else 2)), b.ints(axis))
    divided = b.op("Mul", x, b.scalar(2)) if change == "another numerator" else x
    mean = mean if change == "no epsilon" else b.op("Add", mean, b.scalar(1e-3))
    if change == "epsilon outside":
        return b.op("Div", divided, b.op("Add", b.op("Sqrt", mean), b.scalar(1e-3)))
    return b.op("Div", divided, b.op("Sqrt", mean))


@pytest.mark.parametrize("change", ["another axis", "cube", "another numerator", "no epsilon", "epsilon outside"])
def test_what_is_like_a_norm_stays(change: str) -> None:
    b = Builder()
    proto, feeds = one(b, other(b, change))
    feeds = {name: np.abs(array) for name, array in feeds.items()}
    model = fused(proto)
    assert not norms(model)
    check_equal(proto, model, feeds)


@pytest.mark.parametrize("change", ["gain by token", "two readers", "output"])
def test_what_is_no_gain_stays(change: str) -> None:
    """The norm is taken, and what follows it left."""
    b = Builder()
    inner = decomposed(b, "x", "by a root", "power", False)
    gain = b.op("ReduceSum", "x", b.ints(0)) if change == "gain by token" else b.weight(WIDTH)
    outputs = [b.op("Mul", inner, gain)]
    if change == "two readers":
        outputs.append(b.op("Neg", inner))
    elif change == "output":
        outputs.append(inner)
    proto, feeds = one(b, *outputs)
    model = fused(proto)
    assert norms(model) == {"RMSNorm": 1}
    assert any(node.op_type == "Mul" for node in model.graph)
    check_equal(proto, model, feeds)


@pytest.mark.parametrize("part", ["epsilon", "centered"])
def test_a_wrong_reading_is_not_taken(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison on random numbers sees what the reading does not."""
    from dataclasses import replace

    from qxcompiler.passes import fuse_norm

    def misread(node: Any, shapes: Any) -> Any:
        norm = find(node, shapes)
        wrong = {"epsilon": 1e-6} if part == "epsilon" else {"centered": True}
        return norm and replace(norm, **wrong)

    find = fuse_norm.find_norm
    monkeypatch.setattr(fuse_norm, "find_norm", misread)
    b = Builder()
    proto, feeds = one(b, b.rms_norm("x", WIDTH))
    model = fused(proto)
    assert not norms(model) and model.graph.num_nodes() == len(proto.graph.node)
    check_equal(proto, model, feeds)


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_other_structures(name: str) -> None:
    proto, feeds = getattr(graph_models, name)()
    model = fused(proto, [feeds])
    assert norms(model) and not norms_left(model)
    check_equal(proto, model, feeds, tolerance=1e-5)


def test_costs_of_fused_norms() -> None:
    """A norm of [1, 7, WIDTH] with an addition: two tensors read, and two written."""
    b = Builder()
    total = b.op("Add", "x", "y")
    proto, _ = one(b, b.layer_norm(total, WIDTH), total)
    (item,) = workload(fused(proto), [], Phase.prefill(7)).items
    assert (item.operator, item.read, item.written) == ("SkipLayerNorm", 14 * WIDTH, 14 * WIDTH)
    assert item.read_constant == 2 * WIDTH and item.results == 7 * 7 * WIDTH


FAMILIES = OTHERS | LANGUAGE


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=slow) for name in FAMILIES])
def test_every_norm_of_exported_models(name: str, tmp_path: Path) -> None:
    """Beside attention. OPT reshapes the sums that most of its norms are of."""
    model_type, model_class, settings = FAMILIES[name]
    folder = export(name.split()[0], model_class, model_type, settings, tmp_path)
    for file in sorted(folder.glob("*.onnx")):
        samples = made_up_samples(load_model(file), file)
        model = fused(file, samples, attention=True)
        counts = norms(model)
        assert sum(count for name, count in counts.items() if name.startswith("Skip")) >= 1
        assert not norms_left(model)
        for sample in samples[:2]:
            check_equal(onnx.load(file), model, sample, tolerance=1e-5)
