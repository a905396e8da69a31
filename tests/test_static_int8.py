"""Static INT8: batch norm folded, ranges observed, integers in and out; a CNN keeps its accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from sklearn.datasets import load_digits
from torch import nn

from qxcompiler import compile  # noqa: A004
from qxcompiler.calibration import ranges
from qxcompiler.calibration.ranges import StaticGrid, best_grid, observe
from qxcompiler.errors import QxcError
from qxcompiler.formats import Scheme, parse_format
from qxcompiler.graph import find_sites, normalize
from qxcompiler.passes import pipelines
from qxcompiler.passes.integer_layers import IntegerLayers
from qxcompiler.passes.static_activations import StaticActivations, calibrate_grids
from qxcompiler.progress import silent
from qxcompiler.quantizers import quantize_without_statistics

RNG = np.random.default_rng(0)


def model_of(nodes: Sequence[onnx.NodeProto], x: Sequence[int | None], **weights: np.ndarray) -> onnx.ModelProto:
    """A model from `x` to `y`."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18)])


def run(proto: onnx.ModelProto, x: np.ndarray, *, optimize: bool = True) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdqisint8allowed", "1")  # as on Arm; on x86 only uint8 is, by default
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (y,) = session.run(["y"], {"x": x})
    return np.asarray(y)


def normal(*shape: int, rng: np.random.Generator = RNG) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


# --- batch norm -------------------------------------------------------------------------------------------------------

LAYERS = {
    "Conv": ((2, 6, 9, 8), (4, 6, 3, 3), {"strides": [2, 1], "pads": [1, 0, 1, 2]}, 4),
    "Conv depthwise": ((2, 6, 9, 8), (12, 1, 3, 3), {"group": 6}, 12),
    "Conv 1d": ((2, 6, 9), (4, 3, 3), {"group": 2, "dilations": [2]}, 4),
    "ConvTranspose": ((2, 6, 5, 4), (6, 4, 3, 3), {"strides": [2, 2]}, 4),
    "ConvTranspose grouped": ((2, 6, 5, 4), (6, 2, 3, 3), {"group": 3}, 6),
    "Gemm": ((5, 6), (6, 4), {"alpha": 0.5, "beta": 3.0}, 4),
    "Gemm transposed": ((5, 6), (4, 6), {"transB": 1}, 4),
    "MatMul": ((5, 6), (6, 4), {}, 4),
}


def before_norm(layer: str, bias: bool) -> tuple[onnx.ModelProto, np.ndarray]:
    x, w, attributes, channels = LAYERS[layer]
    operator = layer.split()[0]
    weights = {"w": normal(*w), "gain": normal(channels), "shift": normal(channels), "mean": normal(channels)}
    weights["variance"] = RNG.uniform(0.1, 2, channels).astype(np.float32)
    inputs = ["x", "w"]
    if bias and operator != "MatMul":
        inputs.append("b")
        weights["b"] = normal(channels)
    nodes = [
        helper.make_node(operator, inputs, ["h"], name="layer", **attributes),
        helper.make_node("BatchNormalization", ["h", "gain", "shift", "mean", "variance"], ["y"], epsilon=1e-3),
    ]
    return model_of(nodes, x, **weights), normal(*x)


def fold(proto: onnx.ModelProto) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    normalize(model)
    pipelines.run(pipelines.before_sites(), model)
    folded = ir.to_proto(model)
    onnx.checker.check_model(folded, full_check=True)
    return folded


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_batch_norm_folds_into_the_layer_before_it(layer: str, bias: bool) -> None:
    proto, x = before_norm(layer, bias)
    folded = fold(proto)
    assert [node.op_type for node in folded.graph.node] == ["Gemm" if layer == "MatMul" else layer.split()[0]]
    expected = run(proto, x)
    assert np.abs(run(folded, x) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_other_readers_of_a_folded_weight_keep_it() -> None:
    proto, x = before_norm("Conv", True)
    other = helper.make_node("Conv", ["x", "w"], ["h2"], strides=[2, 1], pads=[1, 0, 1, 2])
    last = helper.make_node("Sub", ["h3", "h2"], ["y"])
    proto.graph.node[1].output[0] = "h3"
    proto.graph.node.extend([other, last])
    folded = fold(proto)
    assert [node.op_type for node in folded.graph.node] == ["Conv", "Conv", "Sub"]
    assert np.allclose(run(folded, x), run(proto, x), atol=1e-5)


@pytest.mark.parametrize("why", ["read twice", "training", "rows of their own", "three dimensions"])
def test_batch_norm_that_cannot_fold_stays(why: str) -> None:
    proto, x = before_norm({"rows of their own": "Gemm", "three dimensions": "MatMul"}.get(why, "Conv"), True)
    if why == "read twice":
        proto.graph.node[1].output[0] = "n"
        proto.graph.node.append(helper.make_node("Add", ["n", "h"], ["y"]))
    elif why == "training":
        proto.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
        proto.graph.node[1].output.extend(["m", "v"])
    elif why == "rows of their own":
        proto.graph.initializer[-1].CopyFrom(numpy_helper.from_array(normal(5, 4), "b"))
    else:
        x = normal(3, 4, 6)
        proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 4, 6]))
    folded = fold(proto)
    assert "BatchNormalization" in [node.op_type for node in folded.graph.node]
    if why != "training":
        assert np.array_equal(run(folded, x), run(proto, x))


# --- ranges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given_bytes", [1 << 28, 100])
def test_histograms_are_those_of_all_samples_at_once(given_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_GIVEN_BYTES", given_bytes)
    nodes = [helper.make_node("Mul", ["x", "c"], ["h"]), helper.make_node("Exp", ["h"], ["y"])]
    proto = model_of(nodes, ["n", 7], c=normal(7))
    model = ir.from_proto(proto)
    normalize(model)
    samples = [{"x": normal(n, 7)} for n in (1, 4, 3)]
    values = [model.graph.inputs[0], *(node.outputs[0] for node in model.graph)]
    x = np.concatenate([sample["x"] for sample in samples])
    h = x * numpy_helper.to_array(proto.graph.initializer[0])
    for histogram, expected in zip(observe(model, values, samples, silent), (x, h, np.exp(h)), strict=True):
        assert np.allclose((histogram.low, histogram.high), (expected.min(), expected.max()), rtol=1e-6)
        edges = np.linspace(histogram.low, histogram.high, 2049)[1:]
        brute = [np.sum(expected <= edge + 1e-5 * abs(edge)) for edge in edges]
        assert histogram.counts.sum() == expected.size
        assert np.abs(histogram.counts.cumsum() - brute).max() <= 1  # a number at an edge


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["normal", "heavy", "rectified", "shifted", "negative"]))
def test_the_grid_is_the_best_of_those_searched(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, 4000) if kind == "heavy" else rng.standard_normal(4000)
    values = {"rectified": np.maximum(values, 0), "shifted": values + 3, "negative": -np.abs(values)}.get(kind, values)
    low, high = float(values.min()), float(values.max())
    histogram = ranges.Histogram(low, high, np.zeros(2048, np.int64))
    histogram.add(values)
    found = best_grid(histogram)

    def error(grid: StaticGrid) -> float:
        return float(np.square(grid.decode(grid.encode(values)) - values).mean())

    ratios = [1 - step / 40 for step in range(21)]
    least = min(error(StaticGrid.spanning(min(low, 0) * a, max(high, 0) * b)) for a in ratios for b in ratios)
    assert error(found) <= 1.1 * least  # a histogram's numbers are off by an eighth of a step at most
    assert -128 <= found.zero_point <= 127
    assert found.decode(found.encode(np.zeros(1))) == 0
    if kind == "rectified":
        assert found.zero_point == -128  # so that a rectifier is what saturating does


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (0.0, 1e-45), (2.0, 2.0), (-3.0, -3.0), (-1e-3, 9e3)])
def test_ranges_of_one_number_and_small_ones_have_grids(low: float, high: float) -> None:
    grid = best_grid(ranges.Histogram(low, high, np.zeros(2048, np.int64)))
    assert grid.scale > 0 and np.isfinite(grid.scale)
    decoded = grid.decode(grid.encode(np.array([low, 0, high])))
    assert np.abs(decoded - [low, 0, high]).max() <= grid.scale / 2 * 1.001 and decoded[1] == 0


# --- integer layers ---------------------------------------------------------------------------------------------------


def quantized(proto: onnx.ModelProto, samples: Sequence[np.ndarray]) -> onnx.ModelProto:
    """With static activations and int8 weights everywhere."""
    model = ir.from_proto(proto)
    normalize(model)
    sites = find_sites(model, every_kind=True)
    nodes = {site.node for site in sites}
    grids, left = calibrate_grids(model, nodes, [{"x": x} for x in samples], silent)
    assert not left
    packed = {
        site.weight: quantize_without_statistics([site.weight], parse_format("int8"), torch.device("cpu"))[0].packed
        for site in sites
    }
    IntegerLayers(dict.fromkeys(sites, Scheme.parse("int8/a8s")), packed, grids)(model)
    StaticActivations(nodes, grids)(model)
    found = ir.to_proto(model)
    onnx.checker.check_model(found, full_check=True)
    return found


def linear_of(proto: onnx.ModelProto, output: str) -> dict[str, np.ndarray]:
    """The constants of the `DequantizeLinear` or `QuantizeLinear` that gives a value."""
    node = next(node for node in proto.graph.node if output in node.output)
    arrays = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    names = ("codes", "scale", "zero_point")
    found = {what: arrays[name].copy() for what, name in zip(names, node.input, strict=True) if name in arrays}
    return found | {"zero_point": found["zero_point"].astype(np.int64)}


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[onnx.ModelProto, np.ndarray, dict[str, list[int] | int]]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    sizes = st.lists(st.integers(1, 3), min_size=rank, max_size=rank)
    kernel, stride, dilation, pad = draw(sizes), draw(sizes), draw(sizes), draw(sizes)
    pad = [min(p - 1, (k - 1) * d) for p, k, d in zip(pad, kernel, dilation, strict=True)]
    group = draw(st.sampled_from([1, 1, 2, 4]))
    inputs, outputs = group * draw(st.integers(1, 3)), group * draw(st.integers(1, 3))
    shape = [2, inputs, *((k - 1) * d + draw(st.integers(1, 5)) for k, d in zip(kernel, dilation, strict=True))]
    attributes: dict[str, list[int] | int] = {"strides": stride, "dilations": dilation, "group": group}
    weights = {"w": normal(outputs, inputs // group, *kernel, rng=rng)}
    if draw(st.booleans()):
        weights["b"] = normal(outputs, rng=rng) * np.float32(draw(st.sampled_from([1, 1000])))
    operators = ["Conv", *draw(st.sampled_from([(), ("Relu",), ("Clip",)]))]
    names = ["x", *(f"h{index}" for index in range(len(operators) - 1)), "y"]
    nodes = [helper.make_node("Conv", ["x", *weights], [names[1]], name="conv", pads=pad + pad, **attributes)]
    if len(operators) > 1:
        bounds = ["zero", "six"] if operators[1] == "Clip" else []
        weights |= {name: np.array(value, np.float32) for name, value in zip(bounds, (0, 6), strict=False)}
        nodes.append(helper.make_node(operators[1], [names[1], *bounds], ["y"]))
    return model_of(nodes, shape, **weights), normal(*shape, rng=rng), attributes | {"padding": pad}


@settings(max_examples=30, deadline=None)
@given(convolutions())
def test_a_convolution_is_the_sum_of_products_of_codes(case: tuple[onnx.ModelProto, np.ndarray, dict]) -> None:
    """Of integers, scaled once at the end: what torch computes with the codes alone, in float64, which is exact."""
    proto, x, attributes = case
    found = quantized(proto, [x])
    conv = next(node for node in found.graph.node if node.op_type == "Conv")
    given_x, weight = linear_of(found, conv.input[0]), linear_of(found, conv.input[1])
    last = linear_of(found, "y")
    original = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    N = len(original["w"])
    assert weight["codes"].dtype == np.int8 and weight["scale"].shape == (N,) and not weight["zero_point"].any()
    off = np.abs(weight["codes"] * weight["scale"].reshape(-1, *[1] * (x.ndim - 1)) - original["w"])
    assert (off.reshape(N, -1).max(1) <= 0.5 * np.abs(original["w"]).reshape(N, -1).max(1)).all()

    codes = np.round(x / given_x["scale"]).clip(-128 - given_x["zero_point"], 127 - given_x["zero_point"])
    convolve = {3: torch.conv1d, 4: torch.conv2d, 5: torch.conv3d}[x.ndim]
    padding = attributes["padding"]
    total = convolve(
        torch.from_numpy(codes).double(),
        torch.from_numpy(weight["codes"]).double(),
        stride=attributes["strides"],
        padding=padding,
        dilation=attributes["dilations"],
        groups=attributes["group"],
    ).numpy()
    by_channel = (1, N, *[1] * (x.ndim - 2))
    steps = given_x["scale"].astype(np.float64) * weight["scale"]
    if "b" in original:
        bias = linear_of(found, conv.input[2])
        assert bias["codes"].dtype == np.int32 and np.allclose(bias["scale"], steps)
        # a large code is no more exact than the scale, a float32
        assert (np.abs(bias["codes"] * steps - original["b"]) <= steps / 2 + 2e-7 * np.abs(original["b"])).all()
        total = total + bias["codes"].reshape(by_channel)
    y = total * steps.reshape(by_channel)
    expected = np.round(y / last["scale"]) + last["zero_point"]
    expected = (expected.clip(-128, 127) - last["zero_point"]) * last["scale"]
    for optimize in (False, True):
        assert np.abs(run(found, x, optimize=optimize) - expected).max() <= 1.001 * last["scale"]  # halves, either way


class Assorted(nn.Module):
    """What convolutional networks have between their layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.depthwise, self.pointwise = nn.Conv2d(16, 16, 5, padding=2, groups=16), nn.Conv2d(16, 32, 1)
        self.squeeze, self.excite = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.up, self.up_norm = nn.ConvTranspose2d(32, 8, 2, stride=2), nn.BatchNorm2d(8)
        self.last, self.hidden, self.head = (
            nn.Conv2d(24, 16, 3, dilation=2, padding=2),
            nn.Linear(256, 20),
            nn.Linear(20, 5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        F = nn.functional
        x = F.hardswish(self.norm(self.first(x)))
        y = self.pointwise(F.silu(self.depthwise(x)))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        y = F.leaky_relu(self.up_norm(self.up(y)))
        left, right = torch.cat([y, F.interpolate(x, scale_factor=2.0, mode="nearest")], 1).split([8, 16], 1)
        y = F.avg_pool2d(F.max_pool2d(F.elu(self.last(torch.cat([right, left], 1))), 2), 2)
        return torch.softmax(self.head(torch.tanh(self.hidden(y[:, :, :4, :4].flatten(1))) * 0.5 + 1), -1)


def not_decoded(proto: onnx.ModelProto) -> list[str]:
    """The float activations that a node reads, other than a rectifier, that no `DequantizeLinear` gives."""
    producers = {output: node for node in proto.graph.node for output in node.output}
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    floats = {each.name for each in (*inferred.value_info, *inferred.input) if each.type.tensor_type.elem_type == 1}
    floats -= {each.name for each in proto.graph.initializer}
    return [
        f"{node.op_type} reads {value}"
        for node in proto.graph.node
        for value in node.input
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Relu", "Clip")
        and value in floats
        and (value not in producers or producers[value].op_type != "DequantizeLinear")
    ]


def test_everything_between_layers_is_in_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Assorted().eval(), torch.randn(8, 3, 32, 32)
    training, names = torch.onnx.TrainingMode.PRESERVE, {"input_names": ["x"], "output_names": ["y"]}
    torch.onnx.export(net, (x,), tmp_path / "m.onnx", dynamo=False, training=training, opset_version=18, **names)
    found = quantized(fold(onnx.load(tmp_path / "m.onnx")), [x.numpy()])
    assert not_decoded(found) == []
    expected = net(x).detach().numpy()
    y = [run(found, x.numpy(), optimize=optimize) for optimize in (False, True)]
    assert np.abs(y[0] - expected).max() < 0.02 and np.abs(y[1] - y[0]).max() <= 2 / 256


def test_numbers_that_mask_others_stay_in_float() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "mask"], ["masked"]),
        helper.make_node("Transpose", ["masked"], ["turned"]),
        helper.make_node("Softmax", ["turned"], ["y"]),
    ]
    proto = model_of(nodes, [4, 8], w=normal(8, 4), mask=np.float32([[0, -3e38, 0, 0]]))
    model = ir.from_proto(proto)
    normalize(model)
    x = normal(4, 8)
    grids, left = calibrate_grids(model, {site.node for site in find_sites(model)}, [{"x": x}], silent)
    assert {value.name for value in grids} == {"x", "h", "y"}
    assert [[value.name for value in values] for values in left.values()] == [["masked"]]
    StaticActivations({site.node for site in find_sites(model)}, grids)(model)
    assert np.abs(run(ir.to_proto(model), x) - run(proto, x)).max() < 0.05


@pytest.mark.parametrize(
    ("operator", "attributes", "shape"),
    [
        ("MatMul", {}, (6, 5)),
        ("MatMul transposed", {}, (5, 6)),
        ("Gemm", {"alpha": 0.5, "beta": 2.0}, (6, 5)),
        ("Gemm", {"transB": 1, "alpha": -1.0}, (5, 6)),
    ],
)
def test_a_linear_layer_keeps_its_numbers(operator: str, attributes: dict, shape: tuple[int, int]) -> None:
    operator, _, turned = operator.partition(" ")
    inputs = ["x", "t" if turned else "w", *(["b"] if operator == "Gemm" else [])]
    nodes = [helper.make_node("Transpose", ["w"], ["t"])] if turned else []
    nodes.append(helper.make_node(operator, inputs, ["y"], **attributes))
    rng = np.random.default_rng(1)
    weights = {"w": normal(*shape, rng=rng), "b": normal(1, 5, rng=rng)}
    proto, x = (
        model_of(nodes, [32, 6], **{name: weights[name] for name in weights if name in (*inputs, "w")}),
        normal(32, 6),
    )
    found = quantized(proto, [x])
    expected = run(proto, x)
    span = expected.max() - expected.min()
    for optimize in (False, True):
        assert np.abs(run(found, x, optimize=optimize) - expected).max() < 0.03 * span
    layer = next(node for node in found.graph.node if node.op_type == operator)
    producers = {output: node.op_type for node in found.graph.node for output in node.output}
    positive = attributes.get("alpha", 1.0) > 0
    assert [producers.get(each) == "DequantizeLinear" for each in layer.input] == [True, True, positive][: len(inputs)]
    assert sum(node.op_type == "QuantizeLinear" for node in found.graph.node) == 2  # of x and y: the weight is stored


# --- a CNN ------------------------------------------------------------------------------------------------------------

TARGET = "npu-int8-qdq"
SAMPLES = 256


class Residual(nn.Module):
    """A depthwise convolution and one of a point, beside nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        norms = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.branch = nn.Sequential(depthwise, norms[0], nn.ReLU6(), pointwise, norms[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.branch(x))


@dataclass(frozen=True)
class Digits:
    """A trained CNN and what it is trained, calibrated and tested on.

    Attributes:
        path: the model.
        images: float32 [1797, 1, 8, 8]; the first half is for training.
        labels: int64 [1797].
    """

    path: Path
    images: np.ndarray
    labels: np.ndarray

    @property
    def half(self) -> int:
        return len(self.images) // 2

    @property
    def calibration(self) -> np.ndarray:
        return self.images[:SAMPLES]

    def accuracy(self, model: Path, **config: str) -> float:
        """On the half held out, in percent."""
        options = onnxruntime.SessionOptions()
        for name, value in config.items():
            options.add_session_config_entry(f"session.{name}", value)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"image": self.images[self.half :]})
        return 100 * float((np.asarray(logits).argmax(1) == self.labels[self.half :]).mean())


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """So small a model trains the faster for it, and always to the same weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """Trained in seconds, on 898 digits of 8 x 8 pixels, and exported with its batch norms as they are."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = (images[order] / 16).astype(np.float32).reshape(-1, 1, 8, 8), labels[order]
    half = len(images) // 2
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        Residual(32),
        *(nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2, weight_decay=0.1)
    x, y = torch.from_numpy(images[:half]), torch.from_numpy(labels[:half])
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs := 15)
    for _ in range(epochs):
        for batch in torch.randperm(half).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch], label_smoothing=0.1).backward()
            optimizer.step()
        rate.step()
    path = tmp_path_factory.mktemp("digits") / "cnn.onnx"
    torch.onnx.export(
        net.eval(),
        (x[:1],),
        path,
        dynamo=False,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "n"}, "logits": {0: "n"}},
    )
    assert "BatchNormalization" in {node.op_type for node in onnx.load(path).graph.node}
    return Digits(path, images, labels)


class _Reader(CalibrationDataReader):
    def __init__(self, images: np.ndarray) -> None:
        self._samples: Iterator[dict[str, np.ndarray]] = iter([{"image": image[None]} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._samples, None)


@pytest.fixture(scope="module")
def compiled(digits: Digits) -> Path:
    folder = digits.path.parent
    np.savez(folder / "images.npz", image=digits.calibration)
    report = compile(
        digits.path,
        TARGET,
        folder / "out",
        calibration=folder / "images.npz",
        weights="int8",
        activations="a8s",
        samples=SAMPLES,
    )
    assert {site.scheme for site in report.sites} == {"int8/a8s"} and len(report.sites) == 5
    assert report.verification is not None
    return folder / "out" / "model.onnx"


def test_a_cnn_keeps_its_accuracy(digits: Digits, compiled: Path) -> None:
    theirs = digits.path.with_name("theirs.onnx")
    quant_pre_process(digits.path, theirs.with_name("prepared.onnx"))
    quantize_static(
        theirs.with_name("prepared.onnx"),
        theirs,
        _Reader(digits.calibration),
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
    exact, ours, other = (digits.accuracy(model) for model in (digits.path, compiled, theirs))
    print(f"\naccuracy on {len(digits.images) - digits.half} digits: float {exact:.2f} %, int8 {ours:.2f} %, ", end="")
    print(f"onnxruntime's quantize_static {other:.2f} %, both calibrated on {SAMPLES} digits")
    assert exact > 95
    assert ours >= exact - 0.5
    assert digits.accuracy(compiled, qdqisint8allowed="1") >= exact - 0.5


def test_a_compiled_cnn_is_all_integers(digits: Digits, compiled: Path, tmp_path: Path) -> None:
    proto = onnx.load(compiled)
    onnx.checker.check_model(compiled, full_check=True)
    nodes = Counter(node.op_type for node in proto.graph.node)
    assert {node.domain for node in proto.graph.node} == {""}
    assert "BatchNormalization" not in nodes
    assert not_decoded(proto) == []


@pytest.mark.parametrize("everywhere", [False, True])
def test_onnxruntime_makes_integer_operators_of_it(compiled: Path, tmp_path: Path, everywhere: bool) -> None:
    """By default on x86, onnxruntime computes a depthwise convolution in int8, and additions, in float."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    if everywhere:
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    onnxruntime.InferenceSession(compiled, options, providers=["CPUExecutionProvider"])
    found = Counter(
        node.op_type for node in onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
    )
    assert found["QLinearConv"] >= (4 if everywhere else 3)
    assert found["QGemm"] == 1 and found["QLinearGlobalAveragePool"] == 1
    if everywhere:
        assert not found.keys() & {"Conv", "Gemm", "Add", "MaxPool", "Relu", "Clip"}
        assert found["QLinearAdd"] == 1 and found["QuantizeLinear"] == 1 == found["DequantizeLinear"]  # in and out


# --- what a user may ask ----------------------------------------------------------------------------------------------


def small(folder: Path, *, half: bool = False) -> Path:
    """A convolution of three points, a rectifier and a linear layer."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="conv"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["y"], name="last"),
    ]
    proto = model_of(nodes, [1, 4, 10], w=normal(32, 4, 3), v=normal(256, 10))
    onnx.save(convert_float_to_float16(proto) if half else proto, folder / "small.onnx")
    return folder / "small.onnx"


FEEDS = [{"x": normal(1, 4, 10)} for _ in range(4)]


def test_a_convolution_without_a_packed_operator_stays_in_float(tmp_path: Path) -> None:
    """Where the dialect has none for it, as before; that is no site, and the report says why."""
    report = compile(small(tmp_path), "npu-int8", tmp_path / "out", calibration=FEEDS)
    assert [site.name for site in report.sites] == ["last"]
    assert [(row.operator, row.reason) for row in report.unquantized if row.operator == "Conv"] in (
        [],
        [("Conv", "a convolution other than 1x1 of stride 1, without padding and groups")],
    )


def test_a_convolution_of_weights_alone(tmp_path: Path) -> None:
    """In QDQ without static activations, its weight alone is int8."""
    target = tmp_path / "target.yaml"
    target.write_text(
        "name: weights\ndescription: weights alone\ninherit: npu-int8-qdq\nactivations: [a32]\n"
        "integer: {bits: [4, 8], group_sizes: [32, row]}\n"
        "preferred: {linear: int8/a32, head: int8/a32, embedding: int8}\n"
    )
    report = compile(small(tmp_path), target, tmp_path / "out", calibration=FEEDS)
    assert [site.scheme for site in report.sites] == ["int8/a32"] * 2
    nodes = [node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node]
    assert nodes.count("DequantizeLinear") == 2 and "QuantizeLinear" not in nodes
    assert any("patches have no statistics" in warning for warning in report.warnings)

    grouped = compile(small(tmp_path), target, tmp_path / "grouped", calibration=FEEDS, weights="int4g32")
    (conv,) = (site for site in grouped.sites if site.name == "conv")
    assert conv.scheme == "float" or conv.in_features <= 32


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"target": "npu-int8", "activations": "a8s"}, "cannot multiply activations as a8s"),
        ({"activations": "a8"}, "cannot multiply activations as a8"),
        ({"calibration": None, "quantizer": "rtn"}, "need samples"),
        ({"half": True}, "static activations need a model in float32"),
    ],
)
def test_what_cannot_be_static_is_refused_in_one_line(tmp_path: Path, options: dict, problem: str) -> None:
    chosen = {"target": TARGET, "calibration": FEEDS, "half": False} | options
    model = small(tmp_path, half=chosen.pop("half"))
    feeds = chosen["calibration"]
    if options.get("half"):
        chosen["calibration"] = [{"x": feed["x"].astype(np.float16)} for feed in feeds]
    with pytest.raises(QxcError, match=problem) as raised:
        compile(model, chosen.pop("target"), tmp_path / "out", **chosen)
    assert "\n" not in str(raised.value)


def test_a_scheme_in_groups_is_refused_for_static_activations(tmp_path: Path) -> None:
    target = tmp_path / "target.yaml"
    target.write_text(
        "name: wrong\ndescription: wrong\ninherit: npu-int8-qdq\ninteger: {bits: [8], group_sizes: [32, row]}\n"
    )
    with pytest.raises(QxcError, match="with int8 alone, not int8g32"):
        compile(small(tmp_path), target, tmp_path / "out", calibration=FEEDS, weights="int8g32")
