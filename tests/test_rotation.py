"""Rotated inputs: the matrix, the operator, and weights that are stored for it."""

import graph_models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_models import available_isas, random_rows, relative_error, session_of
from scipy.linalg import hadamard as sylvester

import qxcompiler
from qxcompiler.calibration.statistics import InputStatistics
from qxcompiler.errors import TargetError, UnsupportedByTargetError
from qxcompiler.formats import Scheme, block_size, hadamard, parse_format, rotate, rotate_back, signs
from qxcompiler.quantizers import find_quantizer
from qxcompiler.runtime_ops.operators import DOMAIN, HADAMARD, VERSION, function_for
from qxcompiler.targets import load_target

PI = "14159265358979323846264338327950288419716939937510"


def test_the_signs_are_the_first_bits_of_pi():
    bits = format(int(int(PI) * 2**64 // 10 ** len(PI)), "064b")
    assert signs() == [-1 if bit == "1" else 1 for bit in bits]


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_a_block_is_the_textbooks_matrix_and_orthogonal(size):
    block = hadamard(size)
    expected = np.diag(signs()[:size]) @ sylvester(size) / np.sqrt(size)
    np.testing.assert_allclose(block.numpy(), expected, rtol=1e-6)
    torch.testing.assert_close(block @ block.T, torch.eye(size), atol=1e-6, rtol=0)


@given(st.integers(1, 4096))
def test_the_block_divides_the_inputs(in_features):
    size = block_size(in_features)
    assert in_features % size == 0
    assert size in (1, 8, 16, 32, 64)
    assert size == 64 or in_features % (2 * max(size, 4)) != 0


@settings(max_examples=30)
@given(st.sampled_from([1, 7, 8, 24, 96, 100, 192]), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_rotating_keeps_products_and_is_undone(in_features, rows, seed):
    torch.manual_seed(seed)
    X, W = torch.randn(rows, in_features), torch.randn(3, in_features)
    torch.testing.assert_close(rotate(X) @ rotate(W).T, X @ W.T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rotate_back(rotate(X)), X)


@pytest.mark.parametrize("name", ["lut3g128h", "int4g32ah", "lut3g64ts8h", "mxfp4h", "ternaryg64h", "nf4g64h", "int8h"])
def test_names(name):
    fmt = parse_format(name)
    assert fmt.rotated
    assert fmt.name == name
    assert not parse_format(name[:-1]).rotated
    assert parse_format(name).operator_suffix == parse_format(name[:-1]).operator_suffix


def rotation_model(block_size: int, dtype: ir.DataType = ir.DataType.FLOAT, shape: ir.Shape | None = None) -> bytes:
    x = ir.Value(name="data", type=ir.TensorType(dtype), shape=shape)
    node = ir.node(HADAMARD, [x], {"block_size": block_size}, domain=DOMAIN, name="the_node")
    y = node.outputs[0]
    y.name, y.dtype = "Y", dtype
    graph = ir.Graph([x], [y], nodes=[node], opset_imports={"": 18, DOMAIN: VERSION}, name="one")
    model = ir.Model(graph, ir_version=9, functions=[function_for(HADAMARD, 18)])
    return ir.to_proto(model).SerializeToString()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("size", [8, 16, 32, 64])
@pytest.mark.parametrize("isa", [None, *available_isas()])
def test_the_operator_computes_what_python_does(isa, size, dtype):
    session = session_of(rotation_model(size, ir.DataType.from_numpy(np.dtype(dtype))), isa)
    for shape in ((size,), (0, size), (3, 0, 2 * size), (2, 3, 5 * size), (70, 8 * size)):
        x = random_rows(shape, 3).clip(-100, 100).astype(dtype)
        y = session.run(None, {"data": x})[0]
        assert y.dtype == dtype
        expected = x.astype(np.float64).reshape(-1, size) @ hadamard(size).double().numpy()
        assert relative_error(y, expected.reshape(shape)) <= (1e-6 if dtype is np.float32 else 1e-3)


@pytest.mark.parametrize("isa", [None, available_isas()[-1]])
@pytest.mark.parametrize("sizes", [("batch", "sequence", 128), (None, None, 128), (None, None, None)])
def test_sizes_that_a_model_leaves_open(isa, sizes):
    session = session_of(rotation_model(64, shape=ir.Shape(sizes)), isa)
    x = random_rows((2, 3, 128), 1)
    expected = x.astype(np.float64).reshape(-1, 64) @ hadamard(64).double().numpy()
    assert relative_error(session.run(None, {"data": x})[0], expected.reshape(x.shape)) <= 1e-6


@pytest.mark.parametrize("isa", available_isas())
def test_what_is_not_finite_stays_in_its_block(isa):
    x = np.ones((1, 32), np.float32)
    x[0, 3] = np.nan
    y = session_of(rotation_model(16), isa).run(None, {"data": x})[0]
    np.testing.assert_array_equal(np.isnan(y[0]), [True] * 16 + [False] * 16)


@pytest.mark.parametrize("size", [0, -8, 1, 4, 12, 128, 2**62])
def test_a_block_that_no_kernel_has(size):
    with pytest.raises(Exception, match=f"'the_node': block_size {size} is none of 8, 16, 32 and 64"):
        session_of(rotation_model(size), available_isas()[-1])


def test_columns_that_blocks_do_not_divide():
    session = session_of(rotation_model(16), available_isas()[-1])
    with pytest.raises(Exception, match=r"input 'X' is float32 \[2, 24\] instead of .* blocks of 16"):
        session.run(None, {"data": np.zeros((2, 24), np.float32)})


def compiled(folder, model, **options):
    onnx.save(model, folder / "model.onnx")
    qxcompiler.compile(folder / "model.onnx", "cpu-x86", folder / "out", quantizer="rtn", **options)
    return onnx.load(folder / "out" / "model.onnx").graph.node


def test_layers_of_one_input_share_a_rotation_and_are_fused(tmp_path):
    model, _ = graph_models.llama(width=32, hidden=48)
    nodes = compiled(tmp_path, model, weights="int8g16h", head="float", embedding="float")
    rotations = [node for node in nodes if node.op_type == HADAMARD]
    sizes = [onnx.helper.get_node_attr_value(node, "block_size") for node in rotations]
    assert sizes == [32, 32, 32, 16] * 2  # query, key and value; attention output; gate and up; down
    operators = [node.op_type for node in nodes if node.domain == DOMAIN and node.op_type != HADAMARD]
    assert operators == ["MatMulInt8", "MatMulInt8", "SwiGluInt8", "MatMulInt8"] * 2


def test_inputs_that_no_block_divides_stay_as_they_are(tmp_path):
    model, _ = graph_models.mlp((12, 24, 10, 6))
    nodes = compiled(tmp_path, model, weights="int8g16h")
    assert [node.op_type for node in nodes if node.op_type == HADAMARD] == [HADAMARD]


def test_what_is_looked_up_is_not_rotated(tmp_path):
    model, _ = graph_models.llama(tied=False)
    with pytest.raises(TargetError, match=r"has scheme int8g16h, but its rows are looked up"):
        compiled(tmp_path, model, weights="int8g16", head="float", embedding="int8g16h")


def test_a_target_says_whether_it_rotates():
    load_target("cpu-x86").check(Scheme.parse("int4g32h/a8"))
    with pytest.raises(UnsupportedByTargetError, match="cannot rotate activations, as int4g32h needs it: leave out"):
        load_target("npu-int8").check(Scheme.parse("int4g32h/a8"))


@pytest.mark.parametrize("quantizer", ["rtn", "gptq"])
def test_statistics_are_rotated_along(quantizer):
    """A rotated weight is quantized as the rotated matrix beside rotated inputs would be."""
    torch.manual_seed(0)
    X, W, quantize = torch.randn(400, 96) * torch.rand(96), torch.randn(8, 96), find_quantizer(quantizer).quantize
    plain, rotated = (InputStatistics.empty(96, torch.device("cpu")) for _ in range(2))
    plain.add(X)
    rotated.add(rotate(X))
    torch.testing.assert_close(plain.rotated().second_moment, rotated.second_moment, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(plain.rotated().mean, rotated.mean, atol=1e-5, rtol=1e-4)
    assert bool((plain.rotated().largest >= rotated.largest).all())
    fmt = parse_format("lut3g32h")
    ours = quantize(rotate(W), fmt, plain.rotated())
    expected = quantize(rotate(W), parse_format("lut3g32"), rotated).decode()
    torch.testing.assert_close(ours.decode(), rotate_back(expected), atol=1e-3, rtol=1e-3)


def test_outliers_cost_less_rotated():
    torch.manual_seed(0)
    W = torch.randn(32, 256)
    W[:, ::61] *= 20

    def error(name: str) -> float:
        return float((find_quantizer("rtn").quantize(W, parse_format(name), None).decode() - W).norm() / W.norm())

    def rotated_error(name: str) -> float:
        quantized = find_quantizer("rtn").quantize(rotate(W), parse_format(name), None)
        return float((quantized.decode() - W).norm() / W.norm())

    assert rotated_error("int4g64h") < 0.8 * error("int4g64")
