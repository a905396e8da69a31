"""Sites: a constant matrix is found however it is written into a graph, and read as the same `[N, K]`."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from graph_models import ARCHITECTURES, IDS, Builder, TensorProto, run
from onnx import helper, numpy_helper

from qxcompiler.errors import ModelError
from qxcompiler.graph import find_sites, load_model, normalize, not_finite

N, K, M = 6, 4, 3
FLOAT = TensorProto.FLOAT
W = np.random.default_rng(1).standard_normal((N, K)).astype(np.float32)  # rows are output features


def sites_of(proto: onnx.ModelProto):
    model = ir.from_proto(proto)
    normalize(model)
    return find_sites(model)


def one_site(proto: onnx.ModelProto):
    (site,) = sites_of(proto)
    return site


def linear_cases():
    """Name, builder of the output from x `[M, K]`."""
    yield "MatMul", lambda b: b.op("MatMul", "x", b.constant(W.T))
    yield (
        "MatMul of rank 3",
        lambda b: b.op("MatMul", b.op("Unsqueeze", "x", b.ints(0)), b.constant(W.T[None])),
    )
    yield "behind Transpose", lambda b: b.op("MatMul", "x", b.op("Transpose", b.constant(W), perm=[1, 0]))
    yield "behind plain Transpose", lambda b: b.op("MatMul", "x", b.op("Transpose", b.constant(W)))
    yield "behind Identity", lambda b: b.op("MatMul", "x", b.op("Identity", b.constant(W.T)))
    yield (
        "behind Cast, Identity, Transpose",
        lambda b: b.op(
            "MatMul",
            "x",
            b.op(
                "Transpose",
                b.op("Identity", b.op("Cast", b.constant(W.astype(np.float64)), to=FLOAT)),
                perm=[1, 0],
            ),
        ),
    )
    yield "Gemm", lambda b: b.op("Gemm", "x", b.constant(W.T), b.weight(N))
    yield "Gemm transB", lambda b: b.op("Gemm", "x", b.constant(W), transB=1, alpha=0.5, beta=2.0)
    yield (
        "Gemm transB behind Transpose",
        lambda b: b.op("Gemm", "x", b.op("Transpose", b.constant(W.T)), transB=1),
    )


@pytest.mark.parametrize("build", [pytest.param(build, id=name) for name, build in linear_cases()])
def test_linear_layers(build):
    b = Builder()
    site = one_site(b.model({"x": (FLOAT, [M, K])}, [build(b)]))
    assert (site.kind, site.out_features, site.in_features, site.activation_axis) == ("linear", N, K, -1)
    matrix = site.weight.matrix()
    assert matrix.dtype == torch.float32
    assert matrix.is_contiguous()
    np.testing.assert_array_equal(matrix.numpy(), W)
    # What the node reads is the operand that we would feed.
    proto = b.model({"x": (FLOAT, [M, K])}, [site.operand.name])
    operand = site.operand_array(matrix)
    if site.operand.is_initializer():
        np.testing.assert_array_equal(operand, site.operand.const_value.numpy())
    else:
        computed = run(proto, {"x": np.zeros((M, K), np.float32)})[site.operand.name]
        assert computed.dtype == operand.dtype
        np.testing.assert_array_equal(operand, computed)


def test_left_operand():
    b = Builder()
    site = one_site(b.model({"x": (FLOAT, [2, K, M])}, [b.op("MatMul", b.constant(W), "x")]))
    assert site.activation_axis == -2
    assert not site.operand_transposed
    assert site.input.name == "x"
    np.testing.assert_array_equal(site.weight.matrix().numpy(), W)


def test_gemm_scales_and_bias_are_exposed():
    b = Builder()
    y = b.op("Gemm", "x", b.constant(W), b.weight(N, name="bias"), transB=1, alpha=0.5, beta=2.0)
    proto = b.model({"x": (FLOAT, [M, K])}, [y])
    site = one_site(proto)
    x = np.random.default_rng(2).standard_normal((M, K)).astype(np.float32)
    expected = site.alpha * x @ site.weight.matrix().numpy().T + site.beta * site.bias.const_value.numpy()
    np.testing.assert_allclose(run(proto, {"x": x})[y], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_pointwise_convolution(rank):
    b = Builder()
    y = b.op("Conv", "x", b.constant(W.reshape(N, K, *[1] * rank)), b.weight(N))
    proto = b.model({"x": (FLOAT, [2, K, *[3] * rank])}, [y])
    site = one_site(proto)
    assert site.activation_axis == 1
    np.testing.assert_array_equal(site.weight.matrix().numpy(), W)
    np.testing.assert_array_equal(site.operand_array(site.weight.matrix()), W.reshape(N, K, *[1] * rank))
    x = np.random.default_rng(2).standard_normal((2, K, *[3] * rank)).astype(np.float32)
    expected = np.moveaxis(np.moveaxis(x, 1, -1) @ W.T + site.bias.const_value.numpy(), -1, 1)
    np.testing.assert_allclose(run(proto, {"x": x})[y], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attributes", [{"strides": [2, 2]}, {"pads": [1, 1, 1, 1]}, {"group": 2}])
def test_other_convolutions_are_no_sites(attributes):
    b = Builder()
    channels = K // 2 if "group" in attributes else K
    y = b.op("Conv", "x", b.weight(N, channels, 1, 1), **attributes)
    assert sites_of(b.model({"x": (FLOAT, [2, K, 3, 3])}, [y])) == []
    b = Builder()
    assert sites_of(b.model({"x": (FLOAT, [2, K, 3, 3])}, [b.op("Conv", "x", b.weight(N, K, 3, 3))])) == []


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_float_types(dtype):
    b = Builder()
    tensor = ir.serde.serialize_tensor(ir.tensor(W.T.astype(dtype), name="w"))
    b.initializers["w"] = tensor
    site = one_site(b.model({"x": (tensor.data_type, [M, K])}, [b.op("MatMul", "x", "w")]))
    matrix = site.weight.matrix()
    np.testing.assert_array_equal(matrix.numpy(), W.astype(dtype).astype(np.float32))
    operand = site.operand_array(matrix)
    assert operand.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(operand.astype(np.float32), W.T.astype(dtype).astype(np.float32))


def test_a_cast_to_half_precision_rounds_the_matrix():
    b = Builder()
    half = b.op("Cast", b.constant(W.T), to=TensorProto.FLOAT16)
    site = one_site(b.model({"x": (TensorProto.FLOAT16, [M, K])}, [b.op("MatMul", "x", half)]))
    np.testing.assert_array_equal(site.weight.matrix().numpy(), W.astype(np.float16).astype(np.float32))
    assert site.operand_array(site.weight.matrix()).dtype == np.float16


def test_weight_in_a_constant_node():
    b = Builder()
    w = b.op("Constant", value=numpy_helper.from_array(W.T.copy()))
    site = one_site(b.model({"x": (FLOAT, [M, K])}, [b.op("MatMul", "x", w)]))
    np.testing.assert_array_equal(site.weight.matrix().numpy(), W)


def test_initializer_that_is_also_an_input():
    b = Builder()
    y = b.op("MatMul", "x", b.constant(W.T, "w"))
    proto = b.model({"x": (FLOAT, [M, K]), "w": (FLOAT, [K, N])}, [y])
    assert find_sites(ir.from_proto(proto)) == []  # a caller may override it, until normalize() fixes it
    np.testing.assert_array_equal(one_site(proto).weight.matrix().numpy(), W)


def branch(weight: str | None, name: str) -> onnx.GraphProto:
    """A body that multiplies the outer x with a weight of its own, or with an outer one."""
    initializers = [] if weight else [numpy_helper.from_array(W.T.copy(), f"{name}_w")]
    node = helper.make_node("MatMul", ["x", weight or f"{name}_w"], [f"{name}_y"], name="inner")
    output = helper.make_tensor_value_info(f"{name}_y", FLOAT, None)
    return helper.make_graph([node], name, [], [output], initializers)


def test_sites_in_both_branches_of_an_if():
    b = Builder()
    y = b.op("If", "flag", then_branch=branch(None, "then"), else_branch=branch(b.constant(W.T, "outer"), "else"))
    proto = b.model({"x": (FLOAT, [M, K]), "flag": (TensorProto.BOOL, [])}, [y])
    sites = sites_of(proto)
    assert [site.in_subgraph for site in sites] == [True, True]
    assert len({site.name for site in sites}) == 2
    assert len({site.weight.name for site in sites}) == 2
    for site in sites:
        np.testing.assert_array_equal(site.weight.matrix().numpy(), W)
    model = ir.from_proto(proto)
    x = np.random.default_rng(2).standard_normal((M, K)).astype(np.float32)
    normalize(model)
    for flag in (True, False):
        feeds = {"x": x, "flag": np.array(flag)}
        np.testing.assert_allclose(run(ir.to_proto(model), feeds)[y], x @ W.T, rtol=1e-5, atol=1e-6)


def test_site_in_a_model_function():
    b = Builder()
    body = [helper.make_node("MatMul", ["a", "w"], ["b"])]
    imports = [helper.make_opsetid("", b.opset)]
    b.functions.append(helper.make_function("local", "Linear", ["a", "w"], ["b"], body, imports))
    b.domains["local"] = 1
    y = b.op("Linear", "x", b.constant(W.T), domain="local")
    y2 = b.op("Linear", y, b.weight(N, N), domain="local")
    sites = sites_of(b.model({"x": (FLOAT, [M, K])}, [y2]))
    assert [(site.out_features, site.in_features) for site in sites] == [(N, K), (N, N)]
    assert len({site.name for site in sites}) == 2
    np.testing.assert_array_equal(sites[0].weight.matrix().numpy(), W)


def test_our_own_functions_are_not_inlined():
    b = Builder()
    body = [helper.make_node("MatMul", ["a", "w"], ["b"])]
    b.functions.append(helper.make_function("qxc", "Packed", ["a", "w"], ["b"], body, [helper.make_opsetid("", 18)]))
    b.domains["qxc"] = 1
    model = ir.from_proto(b.model({"x": (FLOAT, [M, K])}, [b.op("Packed", "x", b.constant(W.T), domain="qxc")]))
    normalize(model)
    assert [node.op_type for node in model.graph] == ["Packed"]
    assert len(model.functions) == 1


def test_tied_embedding_and_head_share_one_weight():
    for tied in (True, False):
        sites = sites_of(ARCHITECTURES["llama"](tied=tied)[0])
        embedding, head = sites[0], sites[-1]
        assert (embedding.kind, head.kind) == ("embedding", "linear")
        assert (embedding.weight is head.weight) is tied
        assert (head.out_features, head.in_features) == (40, 16)
        assert torch.equal(embedding.weight.matrix(), head.weight.matrix()) is tied


def test_one_initializer_in_two_orientations_is_two_weights():
    b = Builder()
    square = b.constant(W[:K, :K], "square")
    y = b.op("Gemm", b.op("MatMul", "x", square), square, transB=1)
    first, second = sites_of(b.model({"x": (FLOAT, [M, K])}, [y]))
    assert first.weight is not second.weight
    assert first.weight.name != second.weight.name
    assert torch.equal(first.weight.matrix(), second.weight.matrix().T)


def test_several_sites_of_one_weight():
    b = Builder()
    square = b.constant(W[:K, :K])
    y = b.op("MatMul", b.op("MatMul", "x", square), square)
    first, second = sites_of(b.model({"x": (FLOAT, [M, K])}, [y]))
    assert first.weight is second.weight


def test_unnamed_nodes_get_unique_names():
    b = Builder()
    y = b.op("MatMul", b.op("MatMul", "x", b.weight(K, K)), b.weight(K, N))
    proto = b.model({"x": (FLOAT, [M, K])}, [y])
    for node in proto.graph.node:
        node.name = ""
    names = [site.name for site in sites_of(proto)]
    assert len(set(names)) == 2
    assert all(names)
    assert len({site.name for site in find_sites(ir.from_proto(proto))}) == 2  # also without normalize()


def not_sites():
    yield "product of activations", lambda b: b.op("MatMul", "x", b.op("Transpose", "x"))
    yield "matrix that adds a dimension", lambda b: b.op("MatMul", "x", b.weight(1, K, N))
    yield "vector", lambda b: b.op("MatMul", "x", b.weight(K))
    yield (
        "outer product",
        lambda b: b.op("MatMul", b.weight(N, 1), b.op("ReduceSum", "x", b.ints(0), keepdims=1)),
    )
    yield "batch of matrices", lambda b: b.op("MatMul", "x", b.weight(2, K, N))
    yield "no columns", lambda b: b.op("MatMul", "x", b.constant(np.zeros((K, 0), np.float32)))
    yield "constant product", lambda b: b.op("MatMul", b.weight(M, K), b.weight(K, N))
    yield "integers", lambda b: b.op("MatMul", b.op("Cast", "x", to=7), b.constant(np.ones((K, N), np.int64)))
    yield "columns of a table", lambda b: b.op("Gather", b.weight(8, K), "ids", axis=1)
    yield "row of constants", lambda b: b.op("Gather", b.weight(8, K), b.ints(2, 1))
    yield "integer table", lambda b: b.op("Gather", b.constant(np.ones((8, K), np.int64)), "ids")
    yield (
        "rotary table",
        lambda b: b.op("Mul", b.op("Unsqueeze", b.op("Gather", b.weight(8, K), "ids"), b.ints(0)), "x"),
    )
    yield "transposed activation", lambda b: b.op("Gemm", "x", b.weight(M, N), transA=1)


@pytest.mark.parametrize("build", [pytest.param(build, id=name) for name, build in not_sites()])
def test_what_is_not_a_site(build):
    b = Builder()
    assert sites_of(b.model({"x": (FLOAT, [M, K]), "ids": IDS}, [build(b)])) == []


def test_nothing_that_a_node_lacks_breaks_the_search():
    b = Builder()
    outputs = [b.op(kind) for kind in ("MatMul", "Gemm", "Conv", "Gather")]
    outputs += [b.op(kind, b.weight(N, K)) for kind in ("MatMul", "Gemm", "Conv", "Gather")]
    outputs.append(b.op("MatMul", "x", b.op("Transpose", b.weight(N, K), perm=[0, 7])))
    assert find_sites(ir.from_proto(b.model({"x": (FLOAT, [M, K])}, outputs))) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_must_be_finite(bad):
    b = Builder()
    poisoned = W.T.copy()
    poisoned[2, 3] = bad
    y = b.op("MatMul", b.op("MatMul", "x", b.weight(K, K, name="good")), b.constant(poisoned, "poisoned"))
    good, poor = sites_of(b.model({"x": (FLOAT, [M, K])}, [y]))
    assert not_finite([good]) == set()
    with pytest.raises(ModelError, match="'poisoned': holds NaN or infinite"):
        not_finite([good, poor])


def test_matrix_is_a_copy_of_data_on_disk(tmp_path):
    b = Builder()
    proto = b.model({"x": (FLOAT, [M, K])}, [b.op("MatMul", "x", b.constant(W.T, "w"))])
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="weights", size_threshold=0)
    model = load_model(path)
    (site,) = find_sites(model)
    site.weight.matrix().zero_()
    np.testing.assert_array_equal(site.weight.matrix().numpy(), W)
