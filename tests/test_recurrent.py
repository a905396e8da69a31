"""Weights of recurrent layers, which dialect `qdq` holds: a site for the input's and one for the state's."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import qxcompiler
from qxcompiler.errors import QxcError
from qxcompiler.formats import parse_format
from qxcompiler.graph import find_sites
from qxcompiler.graph.normal_form import normalize

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STATE, FEATURES = 32, 48


@pytest.fixture
def target(tmp_path):
    """It holds weights alone in integers."""
    path = tmp_path / "weights.yaml"
    path.write_text(
        "name: weights\ndescription: weights alone\ninherit: npu-int8-qdq\nactivations: [a32]\n"
        "integer: {bits: [2, 4, 8], group_sizes: [16, row]}\n"
        "preferred: {linear: int8/a32, head: int8/a32, embedding: int8}\n"
    )
    return path


def layer(operator: str, directions: int, *, linear: bool = True, opset: int = 21) -> onnx.ModelProto:
    """A recurrent layer over x [time, batch, features], and a linear one over its last states."""
    draws = np.random.default_rng(0)
    rows = GATES[operator] * STATE
    arrays = {
        "W": draws.standard_normal((directions, rows, FEATURES)) / FEATURES**0.5,
        "R": draws.standard_normal((directions, rows, STATE)) / STATE**0.5,
        "B": draws.standard_normal((directions, 2 * rows)) / 4,
        "V": draws.standard_normal((STATE, 64)) / STATE**0.5,
    }
    attributes = {"hidden_size": STATE, "direction": "bidirectional" if directions == 2 else "forward"}
    nodes = [helper.make_node(operator, ["x", "W", "R", "B"], ["", "last"], name="recurrent", **attributes)]
    nodes += [helper.make_node("MatMul", ["last", "V"], ["y"], name="linear")]
    if not linear:
        del arrays["V"]
        nodes[1] = helper.make_node("Identity", ["last"], ["y"])
    graph = helper.make_graph(
        nodes,
        "recurrent",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["time", "batch", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def inputs(seed: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((7, 3, FEATURES)).astype(np.float32)}


def run(model: onnx.ModelProto | str, feeds: dict[str, np.ndarray]) -> np.ndarray:
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return ort.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def rounded(matrix: np.ndarray, name: str) -> np.ndarray:
    """Its rows rounded to nearest, as the format says it, all inputs alike."""
    import torch

    weight, fmt = torch.from_numpy(matrix.copy()), parse_format(name)
    grid = fmt.fit(weight, torch.ones(weight.shape[1]))
    return grid.decode(grid.encode(weight, slice(None)), slice(None)).numpy()


def test_both_weights_are_sites_where_every_kind_is():
    model = ir.from_proto(layer("LSTM", 2))
    normalize(model)
    assert [site.name for site in find_sites(model)] == ["linear"]
    sites = {site.name: site for site in find_sites(model, every_kind=True)}
    assert list(sites) == ["recurrent.W", "recurrent.R", "linear"]
    W, R = sites["recurrent.W"], sites["recurrent.R"]
    assert (W.kind, W.out_features, W.in_features) == ("recurrent", 2 * 4 * STATE, FEATURES)
    assert (R.kind, R.out_features, R.in_features) == ("recurrent", 2 * 4 * STATE, STATE)
    assert W.input is R.input is model.graph.inputs[0]
    assert W.bias is R.bias is None
    array = numpy_helper.to_array(next(each for each in layer("LSTM", 2).graph.initializer if each.name == "R"))
    np.testing.assert_array_equal(R.weight.matrix().numpy(), array.reshape(-1, STATE))
    np.testing.assert_array_equal(R.operand_array(R.weight.matrix()), array)


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("weights", ["int8", "int4g16", "int8g16", "int2g16"])
def test_they_compute_with_the_rounded_weights(operator, directions, weights, target, tmp_path):
    proto = layer(operator, directions)
    report = qxcompiler.compile(
        proto, target, tmp_path / "out", weights=weights, head=weights, quantizer="rtn", calibration=[inputs()] * 3
    )
    assert {site.name: site.scheme for site in report.sites} == {
        "recurrent.W": weights,
        "recurrent.R": weights,
        "linear": f"{weights}/a32",
    }
    compiled = onnx.load(tmp_path / "out" / "model.onnx")
    onnx.checker.check_model(compiled, full_check=True)
    assert [node.op_type for node in compiled.graph.node if node.op_type in (operator, "MatMul")] == [
        operator,
        "MatMul",
    ]
    for tensor in proto.graph.initializer:
        if tensor.name in ("W", "R"):
            array = numpy_helper.to_array(tensor)
            matrix = rounded(array.reshape(-1, array.shape[-1]), weights)
            tensor.CopyFrom(numpy_helper.from_array(matrix.reshape(array.shape), tensor.name))
    feeds = inputs(2)
    y, expected = run(tmp_path / "out" / "model.onnx", feeds), run(proto, feeds)
    # the linear layer is weighted by its inputs: what it loses is bounded, what the states lose is nothing
    bound = {"int8": 0.05, "int8g16": 0.05, "int4g16": 0.2, "int2g16": 1.0}[weights]
    assert np.abs(y - expected).max() < bound * np.abs(expected).max()


@pytest.mark.parametrize("weights", ["int8", "int4g16"])
@pytest.mark.parametrize("directions", [1, 2])
def test_alone_the_outputs_are_those_of_the_rounded_weights(directions, weights, target, tmp_path):
    proto = layer("GRU", directions, linear=False)
    qxcompiler.compile(proto, target, tmp_path / "out", weights=weights, quantizer="rtn")
    for tensor in proto.graph.initializer:
        if tensor.name != "B":
            array = numpy_helper.to_array(tensor)
            matrix = rounded(array.reshape(-1, array.shape[-1]), weights)
            tensor.CopyFrom(numpy_helper.from_array(matrix.reshape(array.shape), tensor.name))
    np.testing.assert_allclose(
        run(tmp_path / "out" / "model.onnx", inputs(2)), run(proto, inputs(2)), rtol=0, atol=1e-5
    )


def test_beside_static_activations_their_weights_alone_are_int8(tmp_path):
    calibration = [inputs(seed) for seed in range(3, 7)]
    report = qxcompiler.compile(layer("LSTM", 2), "npu-int8-qdq", tmp_path / "out", calibration=calibration)
    schemes = {site.name: site.scheme for site in report.sites}
    assert schemes == {"recurrent.W": "int8", "recurrent.R": "int8", "linear": "int8/a8s"}
    assert any("a recurrent layer's state has no statistics" in warning for warning in report.warnings)
    y, expected = run(tmp_path / "out" / "model.onnx", inputs(2)), run(layer("LSTM", 2), inputs(2))
    assert np.abs(y - expected).max() < 0.05 * np.abs(expected).max()


def test_what_packed_operators_do_not_hold_is_said(tmp_path):
    report = qxcompiler.compile(layer("LSTM", 1), "cpu-x86", tmp_path, weights="int8g16", quantizer="rtn")
    assert [site.name for site in report.sites] == ["linear"]
    assert "a recurrent layer, which only dialect qdq holds in fewer bits" in {row.reason for row in report.unquantized}


def test_a_plan_says_no_precision_of_a_state(target, tmp_path):
    qxcompiler.compile(layer("GRU", 1), target, tmp_path / "out", quantizer="rtn")
    plan = (tmp_path / "out" / "plan.yaml").read_text()
    (tmp_path / "plan.yaml").write_text(plan.replace("recurrent.R: int8", "recurrent.R: int8/a32"))
    with pytest.raises(QxcError, match=r"plan.yaml:\d+: site recurrent.R has scheme int8/a32: give a format only"):
        qxcompiler.compile(layer("GRU", 1), target, tmp_path / "again", plan=tmp_path / "plan.yaml", quantizer="rtn")


def test_compiled_layers_are_predicted(target, tmp_path):
    report = qxcompiler.compile(layer("LSTM", 2), target, tmp_path / "out", calibration=[inputs()] * 3)
    assert report.predicted or report.not_predicted
