"""What was not quantized is said, with the reason and the share of the bytes; packing only where it pays."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import yaml
from graph_models import Builder, llama
from onnx import TensorProto, numpy_helper

import qxcompiler
from qxcompiler.errors import ModelError, TargetError, UsageError

FLOAT = TensorProto.FLOAT


def compiled(folder, model, **options):
    onnx.save(model, folder / "model.onnx")
    return qxcompiler.compile(folder / "model.onnx", "cpu-x86", folder / "out", quantizer="rtn", **options)


def two_layers(b: Builder, x: str) -> str:
    return b.linear(b.op("Relu", b.linear(x, 64, 96, name="first")), 96, 48, name="second")


def test_bytes_in_a_recurrence_and_a_convolution_are_named(tmp_path):
    b = Builder()
    image = b.op("Conv", "x", b.weight(8, 4, 3, 3), pads=[1, 1, 1, 1], name="stem")
    rows = b.op("Reshape", image, b.ints(5, 1, 64))
    # frameworks that order the gates otherwise put them together when the model runs
    stored = b.weight(128, 64)
    gates = [b.op("Slice", stored, b.ints(32 * i), b.ints(32 * (i + 1)), b.ints(0)) for i in (2, 0, 1, 3)]
    ordered = b.op("Unsqueeze", b.op("Concat", *gates, axis=0), b.ints(0))
    y, _, _ = b.op("LSTM", rows, ordered, b.weight(1, 128, 32), outputs=3, hidden_size=32)
    out = b.linear(b.op("Reshape", y, b.ints(5, 32)), 32, 48)
    model = b.model({"x": (FLOAT, [1, 4, 8, 5])}, [out])
    report = compiled(tmp_path, model, weights="int4g32")
    said = {row.operator: row for row in report.unquantized}
    assert "recurrent" in said["LSTM"].reason
    assert said["LSTM"].tensors == 2
    assert said["LSTM"].bytes == 128 * (64 + 32) * 4
    assert report.unquantized[0].operator == "LSTM"
    packed = sum(site.bytes for site in report.sites)
    total = packed + sum(row.bytes for row in report.unquantized)
    assert said["LSTM"].share == pytest.approx(said["LSTM"].bytes / total)
    # the small convolution counts among the weights, the shapes of `Reshape` do not
    weights = 32 * 48 + 128 * 96 + 8 * 4 * 9
    stored = packed + 4 * (128 * 96 + 8 * 4 * 9)
    assert report.model_bits_per_weight == pytest.approx(8 * stored / weights)
    after = qxcompiler.inspect(tmp_path / "out" / "model.onnx")
    assert {row.operator for row in after.others} >= {"LSTM"}


@pytest.mark.parametrize("options", [{"keep": "second"}, {"head": "float"}])
def test_report_and_inspection_agree_where_sites_are_kept(tmp_path, options):
    b = Builder()
    model = b.model({"x": (FLOAT, ["n", 64])}, [two_layers(b, "x")])
    report = compiled(tmp_path, model, weights="int4g32", **options)
    after = qxcompiler.inspect(tmp_path / "out" / "model.onnx")
    assert report.bits_per_weight == pytest.approx(after.bits_per_weight)
    assert report.model_bits_per_weight == pytest.approx(after.model_bits_per_weight)
    assert report.quantized_bits_per_weight == 4.5
    assert report.bits_per_weight == pytest.approx((4.5 * 64 * 96 + 32 * 96 * 48) / (64 * 96 + 96 * 48))
    kept = next(site for site in report.sites if site.name == "second")
    ((option, value),) = options.items()
    assert (kept.scheme, kept.reason) == ("float", f"kept by --{option} {value}")


def test_one_output_feature_stays_in_float(tmp_path):
    b = Builder()
    hidden = b.op("Relu", b.linear("x", 64, 96, name="wide"))
    model = b.model({"x": (FLOAT, ["n", 64])}, [b.linear(hidden, 96, 1, name="narrow")])
    report = compiled(tmp_path, model, weights="int4g32")
    narrow = next(site for site in report.sites if site.name == "narrow")
    assert narrow.scheme == "float"
    assert "would not make it smaller" in narrow.reason
    assert narrow.bytes == 96 * 4
    assert next(site for site in report.sites if site.name == "wide").scheme == "int4g32/a16"


def test_a_weight_that_something_else_reads_is_not_stored_twice(tmp_path):
    b = Builder()
    shared = b.weight(64, 96, name="shared")
    product = b.op("MatMul", b.op("Relu", b.linear("x", 64, 64, name="plain")), shared, name="sharing")
    model = b.model({"x": (FLOAT, ["n", 64])}, [b.op("Add", product, b.op("ReduceSum", shared))])
    report = compiled(tmp_path, model, weights="int4g32")
    assert {site.name: site.scheme == "float" for site in report.sites} == {"plain": False, "sharing": True}
    assert "ReduceSum" in report.sites[1].reason


def test_nothing_to_gain_is_an_error(tmp_path):
    b = Builder()
    model = b.model({"x": (FLOAT, ["n", 8])}, [b.linear("x", 8, 4)])
    with pytest.raises(ModelError, match="no layer that would become smaller"):
        compiled(tmp_path, model, weights="int8g16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layers", [1, 2])
def test_weights_mean_what_they_say(tmp_path, layers):
    """A model of one layer has no head; the last of several is one."""
    b = Builder()
    x = "x"
    for index in range(layers):
        x = b.linear(x, 64, 64, name=f"layer{index}")
    report = compiled(tmp_path, b.model({"x": (FLOAT, ["n", 64])}, [x]), weights="int3g128")
    expected = ["int3g128/a16", "int8g128/a16"] if layers == 2 else ["int3g128/a16"]
    assert [site.scheme for site in report.sites] == expected


def test_head_and_embedding_have_options_of_their_own(tmp_path):
    model, _ = llama(tied=False, width=64, hidden=96, vocabulary=80)
    report = compiled(tmp_path, model, weights="int4g32", head="int5g32", embedding="int6g32")
    by_role = {site.role: site.scheme for site in report.sites}
    assert by_role["head"] == "int5g32/a16"
    assert by_role["embedding"] == "int6g32"
    assert by_role["down"] == "int4g32/a16"


@pytest.mark.parametrize(
    ("options", "head", "embedding"),
    [
        ({"embedding": "int6g32"}, "int6g32/a16", "int6g32"),
        ({"head": "int5g32"}, "int5g32/a16", "int5g32"),
        ({"head": "float"}, "float", "float"),
    ],
)
def test_a_tied_head_and_embedding_agree(tmp_path, options, head, embedding):
    model, _ = llama(tied=True, width=64, hidden=96, vocabulary=80)
    by_role = {site.role: site.scheme for site in compiled(tmp_path, model, **options).sites}
    assert (by_role["head"], by_role["embedding"]) == (head, embedding)
    with pytest.raises(UsageError, match="share a weight"):
        compiled(tmp_path, model, head="int5g32", embedding="int6g32")


def test_a_plan_of_floats_leaves_the_model_as_it_is(tmp_path):
    b = Builder()
    model = b.model({"x": (FLOAT, ["n", 64])}, [two_layers(b, "x")])
    (tmp_path / "plan.yaml").write_text("sites: {first: float, second: float}\n")
    report = compiled(tmp_path, model, plan=tmp_path / "plan.yaml")
    assert report.quantized_bits_per_weight is None
    assert report.bits_per_weight == 32
    assert any("nothing was quantized" in warning for warning in report.warnings)
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer}
    for tensor in model.graph.initializer:
        np.testing.assert_array_equal(weights[tensor.name], numpy_helper.to_array(tensor))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("target: npu-int8\nsites: {first: int4g32/a8, second: float}\n", "for target npu-int8"),
        ("colour: red\nsites: {first: int4g32/a8, second: float}\n", "colour"),
    ],
)
def test_what_a_plan_says_is_not_ignored(tmp_path, text, said):
    b = Builder()
    model = b.model({"x": (FLOAT, ["n", 64])}, [two_layers(b, "x")])
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(TargetError, match=said):
        compiled(tmp_path, model, plan=tmp_path / "plan.yaml")


def test_keep_that_finds_nothing_is_an_error(tmp_path):
    b = Builder()
    with pytest.raises(UsageError, match="finds no site"):
        compiled(tmp_path, b.model({"x": (FLOAT, ["n", 64])}, [two_layers(b, "x")]), keep="zzz")


def already_quantized(operator: str) -> onnx.ModelProto:
    """A layer whose weight some other tool quantized."""
    b = Builder()
    codes = b.constant(b.random.integers(-128, 127, (64, 96), dtype=np.int8))
    scale, zero_point = b.scalar(0.1), b.constant(np.int8(0))
    match operator:
        case "DequantizeLinear":
            y = b.op("MatMul", "x", b.op("DequantizeLinear", codes, scale, zero_point))
        case "QLinearMatMul":
            grid = (scale, zero_point)
            product = b.op("QLinearMatMul", b.op("QuantizeLinear", "x", *grid), *grid, codes, *grid, *grid)
            y = b.op("DequantizeLinear", product, *grid)
        case "MatMulInteger":
            x, x_scale, x_zero_point = b.op("DynamicQuantizeLinear", "x", outputs=3)
            product = b.op("Cast", b.op("MatMulInteger", x, codes, x_zero_point), to=FLOAT)
            y = b.op("Mul", product, b.op("Mul", x_scale, scale))
        case "MatMulNBits":
            b.domains["com.microsoft"] = 1
            blocks = b.constant(b.random.integers(0, 255, (96, 4, 8), dtype=np.uint8))
            scales = b.constant(np.full(96 * 4, 0.1, np.float32))
            y = b.op("MatMulNBits", "x", blocks, scales, domain="com.microsoft", K=64, N=96, bits=4, block_size=16)
    return b.model({"x": (FLOAT, ["n", 64])}, [y])


@pytest.mark.parametrize("operator", ["DequantizeLinear", "QLinearMatMul", "MatMulInteger", "MatMulNBits"])
def test_a_model_without_sites_says_what_it_holds(tmp_path, operator):
    with pytest.raises(ModelError, match=rf"no linear layer .*{operator}, quantized already"):
        compiled(tmp_path, already_quantized(operator))


def test_a_compiled_model_says_that_it_is_quantized_already(tmp_path):
    b = Builder()
    compiled(tmp_path, b.model({"x": (FLOAT, ["n", 64])}, [b.linear("x", 64, 96)]), weights="int4g32")
    with pytest.raises(ModelError, match=r"no linear layer .*MatMulInt4, quantized already"):
        qxcompiler.compile(tmp_path / "out" / "model.onnx", "cpu-x86", tmp_path / "again", quantizer="rtn")


def test_the_command_ends_with_what_was_chosen_and_what_was_not_quantized(tmp_path, qxc):
    b = Builder()
    x = b.op("Conv", "x", b.weight(64, 4, 3, 3), pads=[1, 1, 1, 1])
    x = b.op("Transpose", b.op("ReduceMean", x, b.ints(2, 3), keepdims=0), perm=[0, 1])
    onnx.save(b.model({"x": (FLOAT, [1, 4, 8, 8])}, [two_layers(b, x)]), tmp_path / "model.onnx")
    command = ("compile", tmp_path / "model.onnx", "--target", "cpu-x86", "--quantizer", "rtn", "--weights", "int4g32")
    result = qxc(*command, "-o", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "over all 2 sites" in result.stdout
    assert "int4g32/a16" in result.stdout
    assert "convolution other than 1x1" in result.stdout
    assert json.loads((tmp_path / "out" / "report.json").read_text())["unquantized"]
    assert yaml.safe_load((tmp_path / "out" / "plan.yaml").read_text())["target"] == "cpu-x86"


def test_a_table_of_infinities_stays_in_float(tmp_path):
    """An attention's bias looked up by distance, with no path to some places."""
    b = Builder()
    table = b.random.standard_normal((64, 64)).astype(np.float32)
    table[3] = -np.inf
    looked_up = b.op("Gather", b.constant(table, "table"), "ids", name="bias")
    model = b.model(
        {"ids": (TensorProto.INT64, ["n"]), "x": (FLOAT, ["n", 64])},
        [b.op("Softmax", b.op("Add", b.linear("x", 64, 64, name="plain"), looked_up), axis=-1)],
    )
    report = compiled(tmp_path, model, weights="int4g32", embedding="int8g32")
    assert {site.name: site.reason for site in report.sites} == {"bias": "holds infinities", "plain": None}
    (tmp_path / "plan.yaml").write_text("sites: {bias: int8g32, plain: int4g32/a16}\n")
    with pytest.raises(ModelError, match="holds infinities"):
        compiled(tmp_path, model, plan=tmp_path / "plan.yaml")


def test_a_file_that_grows_is_said(tmp_path):
    b = Builder()
    model = b.model({"x": (FLOAT, ["n", 32])}, [b.linear("x", 32, 32)])
    report = compiled(tmp_path, model, weights="int8g32")
    assert report.bytes_after > report.bytes_before  # the operator's definition is larger than the weight
    assert any("not smaller" in warning for warning in report.warnings)


def test_an_embedding_kept_alone_is_what_the_error_names(tmp_path):
    b = Builder()
    model = b.model({"ids": (TensorProto.INT64, ["n"])}, [b.op("Gather", b.weight(64, 64), "ids")])
    with pytest.raises(UsageError, match=r"^--embedding float: leaves no site"):
        compiled(tmp_path, model, embedding="float")
