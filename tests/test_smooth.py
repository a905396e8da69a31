"""Smoothing: what a model computes stays, its numbers go where 8-bit activations lose less."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from graph_models import ARCHITECTURES, Builder, TensorProto, run
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from operator_models import as_activation
from random_graphs import graphs
from test_models_families import CAUSAL, ENCODERS, HEADS
from test_random_graphs import TOLERANCE
from tiny_transformers import save_model

import qxcompiler
from qxcompiler.calibration.made_up import made_up_samples
from qxcompiler.calibration.statistics import InputRows
from qxcompiler.calibration.walk import Calibration
from qxcompiler.formats import Scheme, parse_format
from qxcompiler.graph import find_sites, load_model, normalize, raise_opset
from qxcompiler.models import export
from qxcompiler.passes import Smooth, pipelines, smooth

CPU = torch.device("cpu")
FLOAT = TensorProto.FLOAT
K = 16
A8 = Scheme.parse("int4g32/a8")


@pytest.fixture
def always(monkeypatch):
    """Whatever can be smoothed is."""
    monkeypatch.setattr(smooth, "_error", lambda X, layers, s: 1.0 if bool((s == 1).all()) else 0.5)


def smoothed(proto: onnx.ModelProto, *samples: dict[str, np.ndarray], scheme: Scheme = A8) -> ir.Model:
    """A model after the pass, all of whose sites are quantized."""
    model = load_model(proto)
    normalize(model)
    raise_opset(model)
    sites = find_sites(model)
    schemes = {site: Scheme(scheme.format, scheme.activation if site.kind == "linear" else None) for site in sites}
    Smooth(Calibration(sites, samples, CPU, schemes=schemes))(model)
    return model


def check_same(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], tolerance: float = 1e-4) -> ir.Model:
    """See that smoothing changes no output, and give the smoothed model."""
    model = smoothed(proto, feeds)
    found = run(ir.to_proto(model), feeds)
    for name, wanted in run(proto, feeds).items():
        assert found[name].dtype == wanted.dtype
        difference = found[name].astype(np.float64) - wanted
        assert np.linalg.norm(difference) <= tolerance * np.linalg.norm(wanted.astype(np.float64)) + 1e-12
    return model


def changed_weights(proto: onnx.ModelProto, model: ir.Model) -> set[str]:
    before = load_model(proto)
    normalize(before)
    raise_opset(before)
    old, new = ({site.name: site.weight.matrix() for site in find_sites(each)} for each in (before, model))
    return {name for name, matrix in old.items() if not torch.equal(matrix, new[name])}


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.all_nodes())


def feed(*shape: int, seed: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)}


def two_layers(b: Builder, middle: Callable[[str], str], hidden: int = 24, shape: tuple[int | str, ...] = ("n", K)):
    """A layer, something, and another layer."""
    y = b.linear(middle(b.linear("x", K, hidden, bias=True, name="one")), hidden, K, name="two")
    return b.model({"x": (FLOAT, shape)}, [y])


def decomposed_layer_norm(b: Builder, x: str, width: int) -> str:
    centred = b.op("Sub", x, b.op("ReduceMean", x, b.ints(-1), keepdims=1))
    variance = b.op("ReduceMean", b.op("Mul", centred, centred), b.ints(-1), keepdims=1)
    normed = b.op("Div", centred, b.op("Sqrt", b.op("Add", variance, b.scalar(1e-5))))
    return b.op("Add", b.op("Mul", normed, b.weight(width)), b.weight(width))


def swiglu(b: Builder, x: str) -> str:
    gate, up = b.linear(x, K, 24, name="gate"), b.linear(x, K, 24, bias=True, name="up")
    return b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)


def phi(b: Builder, x: str) -> str:
    gate, up = b.op("Split", b.linear(x, K, 48, name="gate_up"), outputs=2, axis=-1, num_outputs=2)
    return b.op("Mul", up, b.op("Mul", gate, b.op("Sigmoid", gate)))


def attention(b: Builder, x: str, groups: int) -> str:
    """4 heads of 4 over x [1, 5, 16], whose values `groups` heads share."""
    heads = 4 // groups

    def split(y: str, count: int) -> str:
        return b.op("Transpose", b.op("Reshape", y, b.ints(1, 5, count, 4)), perm=[0, 2, 1, 3])

    q = split(b.linear(x, K, K, name="q"), 4)
    k, v = (split(b.linear(x, K, 4 * heads, bias=True, name=name), heads) for name in "kv")
    if groups > 1:
        k, v = (
            b.op("Reshape", b.op("Expand", b.op("Unsqueeze", y, b.ints(2)), b.ints(1, heads, groups, 5, 4)), shape)
            for y, shape in ((k, b.ints(1, 4, 5, 4)), (v, b.ints(1, 4, 5, 4)))
        )
    return b.merge(b.attend(q, k, v, 4), K)


PRODUCERS: dict[str, tuple[Callable[[Builder, str], str], set[str]]] = {
    "RMS norm": (lambda b, x: b.rms_norm(x, K), {"last"}),
    "layer norm": (lambda b, x: b.layer_norm(x, K), {"last"}),
    "layer norm in parts": (lambda b, x: decomposed_layer_norm(b, x, K), {"last"}),
    "norm, reshaped": (lambda b, x: b.op("Reshape", b.rms_norm(x, K), b.ints(-1, K)), {"last"}),
    "one plus the norm's weight": (
        lambda b, x: b.op("Mul", b.op("Relu", x), b.op("Add", b.weight(K), b.scalar(1))),
        {"last"},
    ),
    "up": (swiglu, {"gate", "up", "last"}),
    "half of gate and up": (phi, {"gate_up", "last"}),
    "ReLU": (lambda b, x: b.op("Relu", b.linear(x, K, 24, bias=True, name="one")), {"one", "last"}),
    "values": (lambda b, x: attention(b, x, 1), {"q", "k", "v", "last"}),
    "values of two heads": (lambda b, x: attention(b, x, 2), {"q", "k", "v", "last"}),
    "values of all heads": (lambda b, x: attention(b, x, 4), {"q", "k", "v", "last"}),
}


@pytest.mark.parametrize("name", PRODUCERS)
def test_what_a_value_is_made_of_takes_its_factors(always, name):
    produce, changed = PRODUCERS[name]
    b = Builder()
    x = b.rms_norm("x", K) if name.startswith(("up", "half", "ReLU", "values")) else "x"
    value = produce(b, x)
    width = 24 if name.startswith(("up", "half", "ReLU")) else K
    proto = b.model({"x": (FLOAT, [1, 5, K])}, [b.linear(value, width, 8, bias=True, name="last")])
    model = check_same(proto, feed(1, 5, K))
    assert changed_weights(proto, model) == changed
    before = ir.from_proto(proto)
    normalize(before)
    assert operators(model) == operators(before)  # no Mul


def test_heads_that_share_values_share_factors(always):
    b = Builder()
    proto = b.model({"x": (FLOAT, [1, 5, K])}, [b.linear(attention(b, "x", 2), K, 8, name="last")])
    model = check_same(proto, feed(1, 5, K))
    old, new = (next(s for s in find_sites(m) if s.name == "last") for m in (load_model(proto), model))
    s = (new.weight.matrix() / old.weight.matrix()).mean(0).reshape(2, 2, 4)
    torch.testing.assert_close(s[:, 0], s[:, 1])
    assert len(set(s[:, 0].ravel().tolist())) == 8


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_usual_models(always, architecture):
    proto, feeds = ARCHITECTURES[architecture]()
    model = check_same(proto, feeds)
    assert changed_weights(proto, model)


def several_readers(b: Builder, reader: str) -> tuple[str, list[str]]:
    """A normed value that another node, an output or a shape reads beside two layers."""
    normed = b.rms_norm("x", K)
    y = b.op("Add", b.linear(normed, K, K, name="one"), b.linear(normed, K, K, name="two"))
    if reader == "another node":
        return normed, [b.op("Add", y, normed)]
    if reader == "an output":
        return normed, [y, normed]
    if reader == "an output through a view":
        return normed, [y, b.op("Transpose", normed, perm=[1, 0])]
    return normed, [y, b.op("Shape", normed)]


@pytest.mark.parametrize("reader", ["another node", "an output", "an output through a view", "its shape alone"])
def test_what_else_reads_a_value_sees_it_as_it_was(always, reader):
    b = Builder()
    normed, outputs = several_readers(b, reader)
    proto = b.model({"x": (FLOAT, ["n", K])}, outputs)
    model = check_same(proto, feed(5, K))
    assert changed_weights(proto, model) == {"one", "two"}
    names = [node.name for node in model.graph]
    assert (f"{normed}.smooth.Mul" in names) == (reader != "its shape alone")


def test_what_looks_like_values_and_is_not(always):
    """Channels along the rows of a product; a vector at its right; a sum that a row of one number is part of."""
    b = Builder()
    layer = b.linear("x", K, K, bias=True, name="one")
    rows = b.op("Transpose", b.op("MatMul", "p", layer), perm=[1, 0])
    vector = b.op("MatMul", "p", b.op("Reshape", b.linear("z", K, K, name="two"), b.ints(K)))
    outputs = [b.linear(b.op("Sinh", rows), K, 8, name="three"), b.linear(rows, K, 8, name="four")]
    outputs.append(b.linear(b.op("Reshape", vector, b.ints(1, K)), K, 8, name="five"))
    outputs.append(b.linear(b.op("Add", "z", b.linear("z", K, 1, name="six")), K, 8, name="seven"))
    proto = b.model({"x": (FLOAT, [K, K]), "p": (FLOAT, [K, K]), "z": (FLOAT, [1, K])}, outputs)
    x, p, z = (feed(*shape, seed=seed)["x"] for seed, shape in enumerate([(K, K), (K, K), (1, K)]))
    assert len(changed_weights(proto, check_same(proto, {"x": x, "p": p, "z": z}))) == 7


def test_a_layer_that_nothing_reads_stays_in_the_graph(always, tmp_path):
    b = Builder()
    y = b.linear(b.rms_norm("x", K), K, 32, name="one")
    b.linear(b.op("Relu", y), 32, 32, name="dead")
    proto = b.model({"x": (FLOAT, ["n", K])}, [y])
    assert operators(check_same(proto, feed(5, K)))["MatMul"] == 2
    options = {"weights": "int8g16", "head": "int8g16", "activations": "a8"}
    qxcompiler.compile(proto, "cpu-x86", tmp_path / "out", calibration=[feed(5, K)] * 3, **options)


def test_norms_that_share_a_constant_get_constants_of_their_own(always):
    b = Builder()
    gamma = b.weight(K, name="gamma")

    def norm(x: str) -> str:
        return b.op("Mul", gamma, b.op("Div", x, b.op("ReduceMax", b.op("Abs", x), b.ints(-1), keepdims=1)))

    x = b.linear(norm("x"), K, K, name="one")
    proto = b.model({"x": (FLOAT, ["n", K])}, [b.linear(norm(x), K, K, name="two"), norm(x)])
    model = check_same(proto, feed(5, K))
    assert changed_weights(proto, model) == {"one", "two"}
    kept = model.graph.initializers["gamma"].const_value
    assert kept is not None
    np.testing.assert_array_equal(kept.numpy(), onnx.numpy_helper.to_array(b.initializers["gamma"]))


def test_weights_that_others_read_stay(always):
    """Those of a table that is looked up as well, of layers of two inputs, and what a cast or a body reads."""
    b = Builder()
    table, twice, cast = b.weight(K, K, name="table"), b.weight(K, K), b.weight(K, K)
    looked_up = b.op("Gather", table, b.constant(np.array([1, 2])))
    first, second = b.rms_norm("x", K), b.op("Relu", "x")
    outputs = [
        looked_up,
        b.op("MatMul", b.op("Sqrt", b.op("Abs", "x")), table, name="tied"),
        *(b.op("MatMul", x, twice, name=name) for name, x in (("twice", first), ("again", second))),
        b.op("MatMul", b.op("Tanh", "x"), cast, name="cast"),
        b.op("Cast", cast, to=TensorProto.FLOAT16),
        b.linear(b.op("Sin", "x"), K, K, name="free"),
    ]
    proto = b.model({"x": (FLOAT, ["n", K])}, outputs)
    assert changed_weights(proto, check_same(proto, feed(5, K))) == {"free"}


def test_a_left_operand_and_a_convolution(always):
    b = Builder()
    x = b.op("Conv", "x", b.weight(12, 8, 1, 1), b.weight(12), name="one")
    y = b.op("Conv", b.op("Relu", x), b.weight(6, 12, 1, 1), name="two")
    z = b.op("MatMul", b.weight(7, 5), y, name="left")
    proto = b.model({"x": (FLOAT, [2, 8, 5, 4])}, [z])
    model = check_same(proto, feed(2, 8, 5, 4))
    assert changed_weights(proto, model) == {"one", "two", "left"}
    assert operators(model)["Mul"] == 2  # before "one" and "left"


@pytest.mark.parametrize("norm", ["RMS norm", "layer norm", "up", "ReLU"])
def test_float16(always, norm):
    b = Builder()
    b.rms_norm = lambda x, width: b.op("Mul", b.weight(width), b.op("Tanh", x))  # type: ignore[method-assign]
    produce, _ = PRODUCERS[norm]
    value = produce(b, "x" if "norm" in norm else b.rms_norm("x", K))
    width = K if "norm" in norm else 24
    y = b.op("Mul", b.linear(value, width, 8, name="last"), b.scalar(1))
    proto = b.model({"x": (TensorProto.FLOAT16, [5, K])}, [y])
    for tensor in proto.graph.initializer:
        if tensor.data_type == FLOAT:
            half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    model = check_same(proto, {"x": feed(5, K)["x"].astype(np.float16)}, tolerance=3e-3)
    assert "last" in changed_weights(proto, model)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        assert value.dtype == value.const_value.dtype != ir.DataType.FLOAT


def test_what_float16_does_not_hold_stays(always):
    """Factors that would make a number of the model larger than it can be are not used."""
    b = Builder()
    W, scales = b.random.standard_normal((K, 8)), np.ones(K)
    W[2], scales[4] = 30000, 1000
    y = b.op("MatMul", b.op("Mul", "x", b.constant(scales.astype("f2"))), b.constant(W.astype("f2")), name="last")
    proto = b.model({"x": (TensorProto.FLOAT16, [5, K])}, [y])
    x = {"x": feed(5, K)["x"].astype(np.float16) / 64}
    assert not changed_weights(proto, check_same(proto, x))


def test_constants_keep_their_type_behind_a_cast(always):
    b = Builder()
    gamma = b.weight(K)
    bfloat16 = ir.to_proto(ir.Tensor(ir.from_proto(b.initializers[gamma]).numpy().astype(ir.DataType.BFLOAT16.numpy())))
    bfloat16.name = gamma
    b.initializers[gamma] = bfloat16
    x = b.op("Mul", b.op("Tanh", "x"), b.op("Cast", gamma, to=FLOAT))
    proto = b.model({"x": (FLOAT, ["n", K])}, [b.linear(x, K, 8, name="last")])
    model = check_same(proto, feed(5, K), tolerance=1e-2)
    assert {value.dtype for value in model.graph.initializers.values()} == {ir.DataType.BFLOAT16, ir.DataType.FLOAT}


def test_nothing_to_do():
    """Without samples, without 8-bit activations, with channels that are alike."""
    b = Builder()
    proto = b.model({"x": (FLOAT, ["n", K])}, [b.linear(b.rms_norm("x", K), K, 24, name="one")])
    x = feed(5, K)
    assert not changed_weights(proto, smoothed(proto))
    assert not changed_weights(proto, smoothed(proto, x, scheme=Scheme.parse("int4g32/a16")))
    b = Builder()
    y = b.op("MatMul", "x", b.constant(np.ones((K, 8), np.float32)), name="one")
    proto = b.model({"x": (FLOAT, ["n", K])}, [y])
    assert not changed_weights(proto, smoothed(proto, {"x": np.sign(x["x"])}))


def test_zero_channels_and_numbers_that_are_none(always):
    b = Builder()
    W = b.random.standard_normal((K, 24)).astype(np.float32)
    W[3] = 0
    y = b.op("MatMul", b.op("Mul", "x", b.weight(K)), b.constant(W), name="one")
    proto = b.model({"x": (FLOAT, ["n", K])}, [y])
    x = feed(8, K)["x"]
    x[:, 5] = 0
    bad = x.copy()
    bad[0, 2], bad[1, 4] = np.nan, np.inf
    model = smoothed(proto, {"x": bad})
    (old,) = (site.weight.matrix() for site in find_sites(load_model(proto)))
    (new,) = (site.weight.matrix() for site in find_sites(model))
    assert torch.equal(old[:, [3, 5]], new[:, [3, 5]])
    assert bool(new.isfinite().all())
    assert "one" in changed_weights(proto, model)
    found, wanted = (run(each, {"x": x}).popitem()[1] for each in (ir.to_proto(model), proto))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert not changed_weights(proto, smoothed(proto, {"x": np.full_like(x, np.nan)}))


@given(st.integers(0, 1000), st.floats(0, 1))
def test_the_papers_equations(seed, alpha):
    draws = torch.Generator().manual_seed(seed)
    X, W = torch.randn(9, 12, generator=draws), torch.randn(7, 12, generator=draws)
    X[:, 3] *= 100
    s = smooth.factors(X.abs().amax(0), W.abs().amax(0), alpha)
    torch.testing.assert_close((X / s) @ (W * s).T, X @ W.T, rtol=1e-4, atol=1e-3)
    expected = X.abs().amax(0) ** alpha / W.abs().amax(0) ** (1 - alpha)
    torch.testing.assert_close(s / s[0], expected / expected[0], rtol=1e-4, atol=1e-6)
    if alpha == 0.5:
        shared = (X / s).abs().amax(0) / (W * s).abs().amax(0)
        torch.testing.assert_close(shared, shared[:1].expand(12))


def test_activations_are_rounded_as_the_operators_do():
    X = np.random.default_rng(0).standard_normal((20, 33), dtype=np.float32)
    X[3] = 0
    np.testing.assert_allclose(smooth.rounded(torch.from_numpy(X)), as_activation(X, "a8"), rtol=1e-6)


def test_rows_are_drawn_alike_and_always_the_same():
    X = torch.arange(5000.0)[:, None].expand(5000, 2).contiguous()
    found = []
    for parts in (X.split(700), X.split(700)):
        collected = InputRows.empty(2, CPU)
        for part in parts:
            collected.add(part)
        found.append(collected)
    assert torch.equal(found[0].rows, found[1].rows)
    rows = found[0].rows[:, 0]
    assert len(rows) == len(set(rows.tolist())) == 256
    assert abs(float(rows.mean()) - 2500) < 4 * 1443 / 256**0.5
    assert found[0].largest.tolist() == [4999, 4999]


WIDTH = 128


def mlp(outliers: bool) -> onnx.ModelProto:
    """Norm, gate and up, down, twice; some channels are 50 times as large, and smaller again in what reads them."""
    b = Builder(seed=3)
    width, hidden = WIDTH, 3 * WIDTH // 2
    draws = np.random.default_rng(7)

    def large(size: int) -> np.ndarray:
        channels = np.ones(size, np.float32)
        channels[draws.choice(size, size // 16, replace=False)] = 50 if outliers else 1
        return channels

    def normal(*shape: int) -> np.ndarray:
        return (b.random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    x = "x"
    for _ in range(2):
        s, t = large(width), large(hidden)
        root = b.op("ReduceL2", x, b.ints(-1), keepdims=1)
        x_normed = b.op("Mul", b.op("Div", x, root), b.constant(s * (1 + normal(width) / 4)))
        gate = b.op("MatMul", x_normed, b.constant(8 * normal(width, hidden) / s[:, None]))
        up = b.op("MatMul", x_normed, b.constant(8 * normal(width, hidden) / s[:, None] * t))
        product = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)
        x = b.op("Add", x, b.op("MatMul", product, b.constant(normal(hidden, width) / t[:, None])))
    return b.model({"x": (FLOAT, ["n", width])}, [x])


def error_of_w4a8(proto: onnx.ModelProto, folder: Path) -> float:
    """Of what the layers add to the model's input, relative to it."""
    calibration = [feed(64, WIDTH, seed=seed) for seed in range(4)]
    options = {"weights": "int4g32", "head": "int4g32", "activations": "a8", "quantizer": "rtn"}
    qxcompiler.compile(proto, "cpu-x86", folder, calibration=calibration, **options)
    x = feed(256, WIDTH, seed=99)
    y, wanted = qxcompiler.session(folder / "model.onnx").run(None, x)[0], run(proto, x).popitem()[1]
    return float(np.linalg.norm(y - wanted) / np.linalg.norm(wanted - x["x"]))


def test_planted_outliers(tmp_path, monkeypatch):
    """Channels that are 50 times as large cost less than a hundredth of the output with smoothing, and much without."""
    clean, planted = mlp(outliers=False), mlp(outliers=True)
    x = feed(8, WIDTH)
    np.testing.assert_allclose(*(run(proto, x).popitem()[1] for proto in (clean, planted)), rtol=1e-3, atol=1e-4)
    with_smoothing = error_of_w4a8(planted, tmp_path / "smooth")
    monkeypatch.setattr(pipelines, "_BEFORE_CALIBRATION", ())
    without_outliers = error_of_w4a8(clean, tmp_path / "clean")
    assert with_smoothing < without_outliers + 0.01
    assert error_of_w4a8(planted, tmp_path / "plain") > 3 * with_smoothing


def test_it_is_always_the_same():
    samples = [feed(300, WIDTH, seed=seed) for seed in range(3)]
    first, second = (ir.to_proto(smoothed(mlp(outliers=True), *samples)).SerializeToString() for _ in range(2))
    assert first == second != mlp(outliers=True).SerializeToString()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from(["int4g32", "int8", "lut3g128"]), st.floats(0, 4))
def test_no_error_becomes_larger(seed, spec, spread):
    """What is chosen is measured; without outliers it may be nothing."""
    draws = torch.Generator().manual_seed(seed)
    X = InputRows.empty(32, CPU)
    X.add(torch.randn(64, 32, generator=draws) * (spread * torch.randn(32, generator=draws)).exp())
    layers = [smooth._Layer(torch.randn(16, 32, generator=draws), Scheme(parse_format(spec), "a8"))]
    _, s, gain = smooth._best(X, layers, None)
    event(f"gain below {np.ceil(10 * gain) / 10:.1f}")
    rows = X.rows / X.largest.max()
    before, after = (smooth._error(rows, layers, each) for each in (torch.ones(32), s))
    assert gain == pytest.approx(after / before)
    b = Builder()
    y = b.op("MatMul", "x", b.constant(layers[0].W.T.numpy()), name="one")
    proto = b.model({"x": (FLOAT, ["n", 32])}, [y])
    model = smoothed(proto, {"x": X.rows.numpy()}, scheme=layers[0].scheme)
    assert bool(changed_weights(proto, model)) == (gain < 0.9)


@pytest.mark.usefixtures("always")
@settings(deadline=None, derandomize=True, database=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_a_random_graph_computes_the_same(case):
    try:
        expected = [run(case.model, each) for each in case.feeds]
    except Exception:  # not all of them run
        assume(False)
    assume(all(np.isfinite(y).all() for outputs in expected for y in outputs.values()))
    model = load_model(case.model)
    normalize(model)
    assume(find_sites(model))
    model = smoothed(case.model, *case.feeds)
    event("smoothed" if any(".smooth" in name for name in model.graph.initializers) else "as it was")
    for each, wanted in zip(case.feeds, expected, strict=True):
        for name, found in run(ir.to_proto(model), each).items():
            y = wanted[name].astype(np.float64)
            bound = TOLERANCE[wanted[name].dtype.name] * (np.linalg.norm(y.ravel()) + np.sqrt(y.size) * 1e-1)
            assert np.linalg.norm((found - y).ravel()) <= bound


FAMILIES = {
    **{name: (name, "AutoModelForCausalLM", settings) for name, settings in CAUSAL.items()},
    **{name: (name, "AutoModel", settings) for name, settings in ENCODERS.items()},
    **{name: HEADS[name][:3] for name in ("vit", "resnet", "ctc")},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "llama" else pytest.mark.slow) for name in FAMILIES]
)
def test_exported_families(always, name, tmp_path):
    pytest.importorskip("optimum.exporters.onnx")
    model_type, model_class, options = FAMILIES[name]
    save_model(tmp_path / "hf", model_class, model_type, options)
    path = export(tmp_path / "hf", tmp_path / "onnx") / "model.onnx"
    graph = load_model(path)
    normalize(graph)
    (feeds, *_) = made_up_samples(graph, path, seed=0)
    proto = onnx.load(path)
    model = check_same(proto, feeds)
    assert changed_weights(proto, model)
