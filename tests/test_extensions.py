"""An SDK adds formats, an operator, a quantizer, a smoothing pass and a target by entry points, and touches nothing of
ours.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import yaml
from onnx import helper, numpy_helper

import qxcompiler
from qxcompiler.errors import UsageError
from qxcompiler.formats import parse_format
from qxcompiler.passes import pipelines
from qxcompiler.quantizers import find_quantizer
from qxcompiler.runtime_ops.operators import function_for
from qxcompiler.targets import target_names

SDK = '''
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
import torch

from qxcompiler.allocation import Plan
from qxcompiler.formats import TWO_LEVEL, IntegerFormat, IntegerGrid, QuantizedWeight, Scheme, parse_format
from qxcompiler.graph import by_value
from qxcompiler.quantizers import Quantizer
from qxcompiler.runtime_ops.operators import Operator


@dataclass(frozen=True)
class PowerOfTwo(IntegerFormat):
    """Integers whose scales are powers of two."""

    @property
    def name(self):
        return f"p2int{self.bits}g{self.group_size}"

    @property
    def learnable(self):
        return frozenset()  # no scale in between

    def fit(self, weight, importance):
        grid = super().fit(weight, importance)
        return replace(grid, scales=2.0 ** torch.ceil(torch.log2(grid.scales)))


class KQuant(IntegerFormat):
    """Integers in groups whose scales are fractions of the row's, as GGUF's k-quants have them."""

    name = "kq3"


def read(spec):
    return {"p2int4g32": PowerOfTwo(4, 32), "kq3": KQuant(3, 16, TWO_LEVEL, asymmetric=True)}.get(spec)


def toward_zero(weight, fmt, statistics):
    """Round down in magnitude."""
    grid = fmt.fit(weight, weight.new_ones(weight.shape[1]))
    codes = torch.trunc(weight / grid.column_scales(slice(None))) + 2 ** (fmt.bits - 1)
    return QuantizedWeight(grid, codes.clamp(0, 2**fmt.bits - 1).to(torch.uint8))


TOWARD_ZERO = Quantizer(toward_zero, needs=frozenset())


def by_error(question):
    """8 bits where 4 would lose most, 4 bits elsewhere."""
    errors = {}
    fmt = parse_format("int4g32")
    for stop in question.calibration.walk(question.model, "allocate"):
        statistics = stop.statistics([site.weight for site in stop.segment.sites])
        for site in stop.segment.sites:
            W, seen = stop.weights[site.weight], statistics[site.weight]
            grid = fmt.fit(W, seen.importance)
            lost = W - grid.decode(grid.encode(W, slice(None)), slice(None))
            errors[site.name] = float((lost @ seen.second_moment * lost).sum()) * seen.unit**2
    worst = max(errors, key=errors.get)
    return Plan({name: Scheme.parse("int8g32/a32" if name == worst else "int4g32/a32") for name in errors})


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


def row_range(op, X):
    return op.ReduceMin(X, [-1], keepdims=0), op.ReduceMax(X, [-1], keepdims=0), op.ReduceMean(X, [-1], keepdims=0)


ROW_RANGE = Operator("RowRange", ("X",), ("Low", "High", "Mean"), {}, row_range)


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
KERNEL = """
#include <algorithm>
#include <numeric>

#include "operator.h"

namespace {
using namespace qxc::ort;

// The least, the largest and the mean of every row.
class RowRange : public Kernel {
 public:
  explicit RowRange(const KernelInfo& info) : node_(info) {}

  void compute(const KernelContext& context) const override {
    Tensor x = node_.input(context, 0, "X");
    if (x.shape.empty() || x.shape.back() == 0) throw node_.error(kInvalidArgument, "input 'X' has no rows");
    x.align(4);
    const int64_t columns = x.shape.back();
    const Shape shape(x.shape.begin(), x.shape.end() - 1);
    float* out[3];
    for (size_t i = 0; i < 3; ++i) out[i] = static_cast<float*>(node_.output(context, i, kFloat, shape));
    context.parallel_for(element_count(shape.begin(), shape.end()), [&](int64_t row) {
      const float* first = x.as<float>() + row * columns;
      const auto [low, high] = std::minmax_element(first, first + columns);
      out[0][row] = *low;
      out[1][row] = *high;
      out[2][row] = std::accumulate(first, first + columns, 0.0f) / static_cast<float>(columns);
    });
  }

 private:
  Node node_;
};

const Registration registration([](const qxc_kernels&) {
  return std::vector<Operator>{{"RowRange",
                                {kFloat},
                                {kFloat, kFloat, kFloat},
                                [](const KernelInfo& info) { return std::make_unique<RowRange>(info); },
                                [](const ShapeContext& context) {
                                  auto x = context.input(0);
                                  if (!x) return;
                                  x->shape.pop_back();
                                  for (size_t i = 0; i < 3; ++i) context.set_output(i, *x);
                                }}};
});

}  // namespace
"""
GROUPS = {
    "formats": ("p2", "my_sdk:read"),
    "allocations": ("by_error", "my_sdk:by_error"),
    "operators": ("RowRange", "my_sdk:ROW_RANGE"),
    "quantizers": ("toward_zero", "my_sdk:TOWARD_ZERO"),
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


def test_a_format_with_two_levels_of_scales(install, model, tmp_path):
    """Nothing but its name is new to the kernels and the function bodies."""
    path, samples = model
    options = {"calibration": samples, "head": "kq3", "activations": "a32"}
    with pytest.raises(UsageError, match="not a weight format"):
        qxcompiler.compile(path, "cpu-x86", tmp_path / "out", weights="kq3", **options)
    install("formats")
    report = qxcompiler.compile(path, "cpu-x86", tmp_path / "out", weights="kq3", **options)
    assert {site.scheme for site in report.sites} == {"kq3/a32"}
    assert report.sites[0].bits_per_weight == 3 + (8 + 8) / 16 + 16 / 64
    assert {node.op_type for node in onnx.load(tmp_path / "out/model.onnx").graph.node if node.domain == "qxc"} == {
        "MatMulUInt3S8"
    }
    qxcompiler.compile(path, "cpu-x86", tmp_path / "float16", weights="int3g16a", **options | {"head": "int3g16a"})
    assert error(model, tmp_path / "out") < 1.1 * error(model, tmp_path / "float16")


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="no cmake, c++")
def test_an_operator_without_a_packed_weight_and_with_three_outputs(install, tmp_path):
    """Its body in Python, its kernel in C++, a line for each; nothing of the package is touched."""
    install("operators")
    source, build = tmp_path / "row_range.cpp", tmp_path / "build"
    source.write_text(KERNEL)
    # a processor that there are no instruction sets for, so that only portable C++ is built
    processor = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=unheard_of"]
    runtime_ops = Path(__file__).parents[1] / "runtime_ops"
    for command in (
        ["cmake", "-S", runtime_ops, "-B", build, *processor, f"-DQXC_OPERATORS={source}"],
        ["cmake", "--build", build, "--target", "qxc_ops", "--parallel", "2"],
    ):
        subprocess.run(command, check=True, capture_output=True)

    graph = helper.make_graph(
        [helper.make_node("RowRange", ["x"], ["low", "high", "mean"], domain="qxc", name="range")],
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 3, 7])],
        [onnx.ValueInfoProto(name=name) for name in ("low", "high", "mean")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("qxc", 1)]
    body = ir.to_proto(function_for("RowRange", 18))
    model = helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=9).SerializeToString()
    x = np.random.default_rng(0).standard_normal((5, 3, 7), dtype=np.float32)
    expected = [x.min(-1), x.max(-1), x.mean(-1)]
    for library in (build / "libqxc_ops.so", None):
        options = onnxruntime.SessionOptions()
        if library:
            options.register_custom_ops_library(str(library))
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for output, wanted in zip(session.run(None, {"x": x}), expected, strict=True):
            np.testing.assert_allclose(output, wanted, rtol=1e-5, atol=1e-6)
        if library:
            assert [output.shape for output in session.get_outputs()] == [["n", 3]] * 3


def test_an_allocation_that_asks_for_errors_before_the_plan_is_made(install, model, tmp_path):
    path, samples = model
    with pytest.raises(UsageError, match="no such allocation: choose one of "):
        qxcompiler.compile(path, "cpu-x86", tmp_path / "out", calibration=samples, allocation="by_error")
    install("allocations")
    report = qxcompiler.compile(path, "cpu-x86", tmp_path / "out", calibration=samples, allocation="by_error")
    schemes = {site.name: site.scheme for site in report.sites}
    assert sorted(schemes.values()) == ["int4g32/a32"] * (len(schemes) - 1) + ["int8g32/a32"]
    # were those 8 bits anywhere else, more would be lost
    for other in (name for name, scheme in schemes.items() if scheme == "int4g32/a32"):
        plan = {"sites": {name: "int8g32/a32" if name == other else "int4g32/a32" for name in schemes}}
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
        qxcompiler.compile(path, "cpu-x86", tmp_path / other, calibration=samples, plan=tmp_path / "plan.yaml")
        assert error(model, tmp_path / "out") < error(model, tmp_path / other)


def test_a_quantizer(install, model, tmp_path):
    install("quantizers")
    path, samples = model
    options = {"calibration": samples, "weights": "int4g32", "head": "int4g32", "activations": "a32"}
    report = qxcompiler.compile(path, "cpu-x86", tmp_path / "out", quantizer="toward_zero", **options)
    assert {site.quantizer for site in report.sites} == {"toward_zero"}
    del options["calibration"]  # it says that it needs none
    report = qxcompiler.compile(path, "cpu-x86", tmp_path / "without", quantizer="toward_zero", **options)
    assert {site.quantizer for site in report.sites} == {"toward_zero"}
    with pytest.raises(UsageError, match="--quantizer gptq: needs samples"):
        qxcompiler.compile(path, "cpu-x86", tmp_path / "gptq", quantizer="gptq", **options)
    qxcompiler.compile(path, "cpu-x86", tmp_path / "gptq", quantizer="gptq", calibration=samples, **options)
    assert error(model, tmp_path / "out") > 1.1 * error(model, tmp_path / "gptq")
    with pytest.raises(UsageError, match="choose one of rtn, gptq, gptaq, guided, hqq, toward_zero"):
        find_quantizer("away_from_zero")


def test_a_smoothing_pass(install, model, tmp_path, monkeypatch):
    """It changes nothing in floating point, and saves 8-bit activations from outliers, as ours would."""
    monkeypatch.setattr(pipelines, "_BEFORE_CALIBRATION", ())
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


@pytest.mark.parametrize("group", ["allocations", "formats", "operators", "quantizers", "targets"])
def test_what_is_built_in_works_beside_an_extension_that_cannot_be_loaded(install, model, tmp_path, group):
    install(group, source="import a_module_that_is_missing")
    path, _ = model
    report = qxcompiler.compile(path, "cpu-x86", tmp_path / "out", quantizer="rtn", weights="int4g32")
    assert report.sites
