"""The operators' definition: names, function bodies in stock sessions, errors, old runtimes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from attention_models import bits_of
from onnx import TensorProto
from operator_models import (
    FAMILIES,
    SWIGLU_TOLERANCE,
    TOLERANCE,
    available_isas,
    expected_matmul,
    expected_swiglu,
    format_of,
    gather_model,
    matmul_model,
    random_rows,
    random_weight,
    relative_error,
    run,
    run_in,
    session_of,
    swiglu_model,
)

from qxcompiler.errors import ModelError, QxcError
from qxcompiler.formats import (
    CODEBOOK_BITS,
    INTEGER_BITS,
    KERNEL_ACTIVATIONS,
    MX_FORMATS,
    SMALL_FLOATS,
    QuantizedWeight,
    parse_format,
)
from qxcompiler.runtime_ops.operators import MINIMUM_OPSET, OPERATORS, function_for, operator_name
from qxcompiler_runtime import ops_library, session

BEST = available_isas()[-1]
LINEAR = [(matmul_model, expected_matmul, TOLERANCE), (swiglu_model, expected_swiglu, SWIGLU_TOLERANCE)]


def test_names_carry_the_format() -> None:
    assert operator_name(parse_format("int3g128"), "MatMul") == "MatMulInt3"
    assert operator_name(parse_format("int8a"), "Gather") == "GatherUInt8"
    assert operator_name(parse_format("nf4g64"), "MatMul") == "MatMulLut4"
    assert operator_name(parse_format("ternaryg64"), "MatMul") == "MatMulLut2"
    assert operator_name(parse_format("mxfp4"), "Gather") == "GatherFp4E8"
    assert operator_name(parse_format("mxfp6e2m3"), "Gather") == "GatherE2M3E8"
    assert operator_name(parse_format("fp8e5m2g64"), "SwiGlu") == "SwiGluE5M2"
    assert operator_name(parse_format("mxint8"), "MatMul") == "MatMulInt8E8"
    assert operator_name(parse_format("int4g32a"), "SwiGlu") == "SwiGluUInt4"
    assert operator_name(parse_format("lut3g64s8"), "MatMul") == "MatMulLut3S8"
    assert len(OPERATORS) == 3 * 3 * (2 * len(INTEGER_BITS) + len(CODEBOOK_BITS) + len(SMALL_FLOATS)) + 13


@pytest.mark.parametrize("family", FAMILIES)
def test_functions_are_valid_onnx(family: str) -> None:
    weight = random_weight(format_of(family, 32), 64, 100, 0)
    for opset in (MINIMUM_OPSET, 21, 23):
        linear = [model(weight, "a8", opset=opset) for model in (matmul_model, swiglu_model)]
        for model in (*linear, gather_model(weight, opset=opset)):
            proto = onnx.load_model_from_string(model)
            for value in (proto.graph.input[0], proto.graph.output[0]):
                value.type.tensor_type.shape.dim.add().dim_param = "M"  # the checker wants some shape
            onnx.checker.check_model(proto)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_has_a_function_without_overload(name: str) -> None:
    function = function_for(name, MINIMUM_OPSET)
    assert (function.domain, function.name, function.overload) == ("qxc", name, "")
    proto = ir.to_proto(function)
    assert not proto.value_info and not proto.metadata_props
    # no number has another type than what it meets, but for the codes of a cache; Y is converted, to the type of A, X
    # or query, and rotated keys
    converted = [node.output[0] for node in proto.node if node.op_type == "CastLike"]
    assert converted[-1:] == ["Y"] * (proto.input[0] in ("A", "X", "query"))
    if not bits_of(name):
        assert len(converted) == len(converted[-1:]) + ("cos" in proto.input)
    with pytest.raises(ValueError, match="opset 18"):
        function_for(name, MINIMUM_OPSET - 1)


@pytest.mark.parametrize("activation", KERNEL_ACTIVATIONS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("model_of", "expected", "tolerance"), LINEAR)
def test_stock_session_computes_what_the_kernel_does(
    family: str,
    activation: str,
    model_of: Callable[..., bytes],
    expected: Callable[..., np.ndarray],
    tolerance: dict[str, float],
) -> None:
    for seed, (group_size, N, K, M) in enumerate(
        [(16, 1, 7, 1), (32, 72, 300, 3), (None, 90, 100, 2), (128, 64, 31, 0)]
    ):
        if model_of is swiglu_model:
            N += -N % 32
        weight = random_weight(format_of(family, group_size), N, K, seed)
        a, bias = random_rows((M, K), seed), np.random.default_rng(seed).standard_normal(N).astype(np.float32)
        model = model_of(weight, activation, bias)
        stock = run(model, a, None)
        assert relative_error(stock, expected(weight, a, bias, activation)) <= tolerance["a32"]
        assert relative_error(run(model, a, BEST), stock) <= tolerance[activation]


@pytest.mark.parametrize("shape", [(100,), (1, 100), (0, 100), (2, 0, 100), (2, 3, 100)])
def test_gate_in_a_stock_session_for_any_shape(shape: tuple[int, ...]) -> None:
    weight = random_weight(format_of("int3", 32), 96, 100, 2)
    a = random_rows(shape, 3)
    y = run(swiglu_model(weight, "a32"), a, None)
    assert y.shape == (*shape[:-1], 48)
    assert relative_error(y, expected_swiglu(weight, a, 0, "a32")) <= 4e-6


def test_gate_without_whole_pairs_of_tiles_is_an_error() -> None:
    weight = random_weight(format_of("int3", 32), 48, 100, 2)
    with pytest.raises(Exception, match="'the_node': N = 48 is no multiple of 32"):
        run(swiglu_model(weight, "a32"), random_rows((1, 100), 3), BEST)


@pytest.mark.parametrize("opset", [19, 21, 23])
def test_stock_session_of_later_opsets(opset: int) -> None:
    weight = random_weight(format_of("lut3", 32), 70, 100, 0)
    a = random_rows((2, 3, 100), 1)
    for activation in ("a16", "a8"):
        y = run(matmul_model(weight, activation, opset=opset), a, None)
        assert relative_error(y, expected_matmul(weight, a, 0, activation)) <= 2e-6


@pytest.mark.parametrize("activation", KERNEL_ACTIVATIONS)
def test_stock_session_with_nan_infinity_and_a_vector(activation: str) -> None:
    weight = random_weight(format_of("int3", 32), 70, 100, 2)
    model = matmul_model(weight, activation)
    a = random_rows((5, 100), 3)
    a[0, 3], a[2, 99], a[4, [1, 2]] = np.nan, np.inf, (np.inf, -np.inf)
    stock, kernel = run(model, a, None), run(model, a, BEST)
    np.testing.assert_array_equal(np.isfinite(stock), np.isfinite(kernel))
    np.testing.assert_array_equal(np.isnan(stock), np.isnan(kernel))
    finite = np.isfinite(stock)
    assert relative_error(kernel[finite], stock[finite]) <= TOLERANCE[activation]
    vector = random_rows((100,), 4)
    assert relative_error(run(model, vector, None), expected_matmul(weight, vector, 0, activation)) <= 2e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_gather_is_exactly_the_decode(family: str) -> None:
    weight = random_weight(format_of(family, 32), 37, 100, 5)
    indices = np.array([[0, 36], [-1, 15]], np.int32)
    y = run(gather_model(weight, ir.DataType.INT32), indices, None)
    np.testing.assert_array_equal(y, weight.decode().numpy()[indices])


def test_every_e8m0_byte_and_fp4_code_in_a_stock_session() -> None:
    """MX specification, sections 5.3.3 and 5.4.1: byte e is 2**(e - 127), and 255 is NaN."""
    codes = torch.arange(16, dtype=torch.uint8).repeat(32)
    weight = QuantizedWeight(MX_FORMATS["mxfp4"].with_scales(512, torch.ones(1, 16)), codes[None])
    magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    elements = np.array(magnitudes + [-magnitude for magnitude in magnitudes])
    for first in range(0, 256, 16):
        exponents = np.arange(first, first + 16)
        scales = np.zeros((1, 16, 16), np.uint8)
        scales[0, :, 0] = exponents
        y = run(gather_model(weight, scales=scales), np.array(0), None)
        expected = np.repeat(2.0 ** (exponents - 127.0), 32) * np.tile(elements, 32)
        expected[np.repeat(exponents == 255, 32)] = np.nan
        with np.errstate(over="ignore"):  # 4 and 6 times 2**127
            np.testing.assert_array_equal(y, expected.astype(np.float32))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layout": "tile16.v2"}, "layout 'tile16.v2' is not known"),
        ({"activation_": "a4"}, "activation 'a4' is none of 'a32', 'a16' and 'a8'"),
        ({"group_size": 48}, "group_size 48 is neither"),
        ({"group_size": 0}, "group_size 0 is neither"),
        ({"K": 0}, "is no matrix"),
        ({"K": 2**62}, "is no matrix"),
        ({"N": -1}, "is no matrix"),
    ],
)
def test_attributes_that_make_no_sense(wrong: dict[str, object], message: str) -> None:
    weight = random_weight(format_of("int4", 32), 40, 100, 6)
    activation = str(wrong.pop("activation_", "a8"))
    with pytest.raises(Exception, match=f"'the_node': .*{message}"):
        run(matmul_model(weight, activation, **wrong), random_rows((1, 100), 0), BEST)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"K": 101, "group_size": 32}, r"'A' is float32 \[1, 100\] instead of float32 or float16 \[\.\.\., 101\]"),
        ({"N": 49}, "'packed' has shape"),
        ({"group_size": 16}, "'scales' has shape"),
        (
            {"packed": np.zeros((3, 4, 4, 63), np.uint8)},
            r"'packed' has shape \[3, 4, 4, 63\] instead of \[3, 4, 4, 64\]",
        ),
        ({"packed": np.zeros((3, 4, 64), np.uint8)}, "'packed' has shape"),
        ({"scales": np.zeros((3, 4, 15), np.float16)}, "'scales' has shape"),
        ({"zero_points": np.zeros((3, 3, 16), np.uint8)}, "'zero_points' has shape"),
        ({"bias": np.zeros(39, np.float32)}, "'bias' has shape"),
        ({"bias": np.zeros((), np.float32)}, "'bias' has shape"),
    ],
)
def test_sizes_that_differ_are_errors_not_reads_out_of_bounds(wrong: dict[str, object], message: str) -> None:
    weight = random_weight(format_of("int4@a", 32), 40, 100, 6)
    with pytest.raises(Exception, match=f"'the_node': .*{message}"):
        run(matmul_model(weight, "a8", wrong.pop("bias", None), **wrong), random_rows((1, 100), 0), BEST)


def test_codebook_of_another_size_is_an_error() -> None:
    weight = random_weight(format_of("lut3", 32), 40, 100, 6)
    with pytest.raises(Exception, match=r"'codebook' has shape \[1, 1, 16\] instead of \[1, 1, 8\] or \[3, 16, 8\]"):
        run(matmul_model(weight, "a8", codebook=np.zeros((1, 1, 16), np.int8)), random_rows((1, 100), 0), BEST)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_shapes_are_known_before_the_model_runs(dtype: int) -> None:
    """Sizes and their names pass through, so that the nodes after an operator can be planned."""
    weight = random_weight(parse_format("int3g32"), 64, 96, 0)
    for build, last in ((matmul_model, 64), (swiglu_model, 32), (gather_model, None)):
        model = onnx.load_model_from_string(build(weight, **({"activation": "a8"} if last else {})))
        element = dtype if last else TensorProto.INT64
        shape = ["batch", 3, 96] if last else ["batch", 3]
        model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("data", element, shape))
        model.graph.output[0].ClearField("type")
        (y,) = session_of(model.SerializeToString(), BEST).get_outputs()
        assert y.shape == ["batch", 3, last or 96]
        assert y.type == ("tensor(float16)" if last and dtype == TensorProto.FLOAT16 else "tensor(float)")
        model.graph.input[0].type.tensor_type.ClearField("shape")
        (y,) = session_of(model.SerializeToString(), BEST).get_outputs()
        assert y.shape in (None, [])  # nothing is known


def test_session_opens_compiled_models(tmp_path: Path) -> None:
    weight = random_weight(format_of("int4", 32), 40, 100, 7)
    path = tmp_path / "model.onnx"
    path.write_bytes(matmul_model(weight, "a16"))
    a = random_rows((2, 100), 8)
    for options in ({}, {"threads": 2}, {"optimize": False}):
        y = session(path, **options).run(None, {"data": a})[0]  # type: ignore[arg-type]
        assert relative_error(y, expected_matmul(weight, a, 0, "a16")) <= TOLERANCE["a16"]


def test_session_of_what_is_no_model_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("not a model")
    with pytest.raises(ModelError, match=r"model\.onnx: onnxruntime cannot run it") as caught:
        session(path)
    assert "\n" not in str(caught.value)


def test_library_that_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qxcompiler_runtime.library._LIBRARY", "libmissing.so")
    with pytest.raises(QxcError, match="the operators are not built"):
        ops_library()


@pytest.mark.parametrize("isa", ["sse9", ""])
def test_unknown_instruction_set_is_an_error(isa: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(matmul_model(random_weight(format_of("int4", 32), 16, 32, 0), "a16"))
    script = f"from qxcompiler_runtime import session; session({str(path)!r})"
    environment = {**os.environ, "QXC_ISA": isa}
    done = subprocess.run([sys.executable, "-P", "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"QXC_ISA={isa}: no such instruction set" in done.stderr


@pytest.mark.parametrize("with_library", [True, False])
@pytest.mark.parametrize("family", ["int3", "int8@a", "lut4", "mxfp4"])
def test_onnxruntime_1_20(family: str, with_library: bool, tmp_path: Path) -> None:
    weight = random_weight(format_of(family, 32), 96, 100, 9)
    a = random_rows((3, 100), 10)
    library = str(ops_library()) if with_library else ""
    for activation in ("a16", "a8"):
        for model_of, expected, tolerance in LINEAR:
            done = run_in("1.20.1", library, model_of(weight, activation), {"data": a}, tmp_path)
            assert done.returncode == 0, done.stderr
            error = relative_error(np.load(tmp_path / "y.npy"), expected(weight, a, 0, activation))
            assert error <= tolerance[activation]


def test_too_old_onnxruntime_says_what_is_needed(tmp_path: Path) -> None:
    weight = random_weight(format_of("int4", 32), 40, 100, 9)
    done = run_in(
        "1.16.3", str(ops_library()), matmul_model(weight, "a8"), {"data": random_rows((3, 100), 10)}, tmp_path
    )
    assert done.returncode != 0
    assert "the qxc operators need ONNX Runtime 1.17 or later, and this is 1.16.3" in done.stderr
