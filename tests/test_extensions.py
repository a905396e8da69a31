"""An SDK adds a format, a quantizer, a smoothing pass and a target by entry points, and touches nothing of ours."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import qxcompiler
from qxcompiler.errors import UsageError
from qxcompiler.formats import parse_format
from qxcompiler.quantizers import find_quantizer
from qxcompiler.targets import target_names

SDK = '''
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
import torch

from qxcompiler.formats import IntegerFormat, IntegerGrid, QuantizedWeight
from qxcompiler.graph import by_value


@dataclass(frozen=True)
class PowerOfTwo(IntegerFormat):
    """Integers whose scales are powers of two."""

    @property
    def name(self):
        return f"p2int{self.bits}g{self.group_size}"

    def fit(self, weight, importance):
        grid = super().fit(weight, importance)
        return replace(grid, scales=2.0 ** torch.ceil(torch.log2(grid.scales)))


def read(spec):
    return PowerOfTwo(4, 32) if spec == "p2int4g32" else None


def toward_zero(weight, fmt, statistics):
    """Round down in magnitude."""
    grid = fmt.fit(weight, weight.new_ones(weight.shape[1]))
    codes = torch.trunc(weight / grid.column_scales(slice(None))) + 2 ** (fmt.bits - 1)
    return QuantizedWeight(grid, codes.clamp(0, 2**fmt.bits - 1).to(torch.uint8))


class Smooth(ir.passes.InPlacePass):
    """SmoothQuant (Xiao et al. 2023, equation 4) with an explicit Mul of every value that layers read."""

    stage = "before_calibration"

    def __init__(self, calibration):
        super().__init__()
        self.calibration = calibration

    def call(self, model):
        scales = {}
        for stop in self.calibration.walk(model, "smooth"):
            statistics = stop.statistics([site.weight for site in stop.segment.sites])
            for value, sites in by_value(stop.segment.sites).items():
                found = statistics[sites[0].weight]
                largest = (found.unit * found.largest).clamp(min=1e-5)
                W = torch.cat([stop.weights[site.weight] for site in sites])
                scales[value] = sites, (largest / W.abs().amax(0).clamp(min=1e-5)).sqrt()
        for value, (sites, s) in scales.items():
            factor = ir.Value(name=f"{value.name}.smooth", const_value=ir.tensor((1 / s).numpy()))
            factor.const_value.name = factor.name
            model.graph.register_initializer(factor)
            node = ir.node("Mul", [value, factor], name=f"{value.name}.Mul")
            node.outputs[0].name, node.outputs[0].type = f"{value.name}.smoothed", value.type
            sites[0].node.graph.insert_before(sites[0].node, node)
            for site in sites:
                site.weight.change(lambda W, s=s: W * s)
                site.node.replace_input_with(1 - site.operand_index, node.outputs[0])
        return ir.passes.PassResult(model, modified=bool(scales))


def descriptor():
    return Path(__file__).with_name("sdk-npu.yaml")
'''
DESCRIPTOR = """\
name: sdk-npu
description: takes powers of two, and nothing else
dialect: qxc
activations: [a32, a8]
integer: {bits: [4], group_sizes: [32], zero_points: false}
preferred: {linear: p2int4g32/a32, head: p2int4g32/a32, embedding: p2int4g32}
"""
GROUPS = {
    "formats": ("p2", "my_sdk:read"),
    "quantizers": ("toward_zero", "my_sdk:toward_zero"),
    "passes": ("smooth", "my_sdk:Smooth"),
    "targets": ("sdk-npu", "my_sdk:descriptor"),
}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install the SDK with entry points of some groups."""

    def put(*groups: str, source: str = SDK) -> None:
        folder = tmp_path / "site"
        info = folder / "my_sdk-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / "my_sdk.py").write_text(source)
        (folder / "sdk-npu.yaml").write_text(DESCRIPTOR)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-sdk\nVersion: 1.0\n")
        sections = ["[qxcompiler.{}]\n{} = {}\n".format(group, *GROUPS[group]) for group in groups]
        (info / "entry_points.txt").write_text("\n".join(sections))
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, "my_sdk", raising=False)
        importlib.invalidate_caches()

    return put


@pytest.fixture
def model(tmp_path):
    """A layer, some of whose inputs are 50 times as large as the others, two that read what it gives; and samples."""
    draws = np.random.default_rng(0)
    first, second, third = (draws.standard_normal((64, 64), dtype=np.float32) / 8 for _ in range(3))
    outliers = np.where(np.arange(64) % 16 == 3, 50, 1).astype(np.float32)
    nodes = [
        helper.make_node("Mul", ["x", "outliers"], ["large"]),
        helper.make_node("MatMul", ["large", "w1"], ["h"], name="one"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="two"),
        helper.make_node("MatMul", ["r", "w3"], ["z"], name="three"),
    ]
    x, y, z = (helper.make_tensor_value_info(name, 1, ["n", 64]) for name in "xyz")
    weights = {"w1": first / outliers[:, None], "w2": second, "w3": third, "outliers": outliers}
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", [x], [y, z], tensors)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    samples = [{"x": draws.standard_normal((32, 64), dtype=np.float32)} for _ in range(6)]
    return path, samples


def error(model, out) -> float:
    path, _ = model
    x = np.random.default_rng(9).standard_normal((64, 64), dtype=np.float32)
    y, y_ref = (qxcompiler.session(file).run(None, {"x": x})[0] for file in (out / "model.onnx", path))
    return float(np.linalg.norm(y - y_ref) / np.linalg.norm(y_ref))


def test_a_format_and_a_target(install, model, tmp_path):
    install("formats", "targets")
    assert "sdk-npu" in target_names()
    assert parse_format("p2int4g32").name == "p2int4g32"
    path, samples = model
    report = qxcompiler.compile(path, "sdk-npu", tmp_path / "out", calibration=samples)
    assert {site.scheme for site in report.sites} == {"p2int4g32/a32"}
    scales = [t for t in onnx.load(tmp_path / "out/model.onnx").graph.initializer if t.name.endswith("scales")]
    for tensor in scales:
        mantissa, _ = np.frexp(numpy_helper.to_array(tensor, str(tmp_path / "out")).astype(np.float32))
        assert set(mantissa.ravel()) == {0.5}
    assert error(model, tmp_path / "out") < 0.5


def test_a_quantizer(install, model, tmp_path):
    install("quantizers")
    path, samples = model
    options = {"calibration": samples, "weights": "int4g32", "head": "int4g32", "activations": "a32"}
    report = qxcompiler.compile(path, "cpu-x86", tmp_path / "out", quantizer="toward_zero", **options)
    assert {site.quantizer for site in report.sites} == {"toward_zero"}
    qxcompiler.compile(path, "cpu-x86", tmp_path / "gptq", quantizer="gptq", **options)
    assert error(model, tmp_path / "out") > 1.1 * error(model, tmp_path / "gptq")
    with pytest.raises(UsageError, match="choose one of toward_zero, rtn, gptq"):
        find_quantizer("away_from_zero")


def test_a_smoothing_pass(install, model, tmp_path):
    """It changes nothing in floating point, and saves 8-bit activations from outliers."""
    path, samples = model
    options = {"calibration": samples, "weights": "int8g32", "head": "int8g32", "activations": "a8"}
    qxcompiler.compile(path, "cpu-x86", tmp_path / "plain", **options)
    install("passes")
    qxcompiler.compile(path, "cpu-x86", tmp_path / "smooth", **options)
    nodes = [node.op_type for node in onnx.load(tmp_path / "smooth/model.onnx").graph.node]
    assert (nodes.count("Mul"), nodes.count("MatMulInt8")) == (3, 2)  # two layers share a factor, and an operator
    assert error(model, tmp_path / "smooth") < 0.5 * error(model, tmp_path / "plain")
    exact = {**options, "activations": "a32", "weights": "int8g16", "head": "int8g16"}
    qxcompiler.compile(path, "cpu-x86", tmp_path / "exact", **exact)
    assert error(model, tmp_path / "exact") < 0.01


def test_an_extension_that_cannot_be_loaded_is_named(install):
    install("quantizers", source="import a_module_that_is_missing")
    with pytest.raises(UsageError, match=r"my-sdk: its entry point toward_zero .* cannot be loaded \(No module named"):
        find_quantizer("toward_zero")
    assert find_quantizer("gptq")
