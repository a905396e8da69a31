"""Packed operators that become one: the same numbers from the same bytes, and everything else untouched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import graph_models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from graph_models import Builder
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from operator_models import available_isas, relative_error, session_of

from qxcompiler.formats import Scheme
from qxcompiler.graph import find_sites, normalize
from qxcompiler.passes import PackSites, pipelines
from qxcompiler.passes.emission.writer import ROLE
from qxcompiler.quantizers import quantize_without_statistics

BEST = available_isas()[-1]
K = 32


def packed(proto: onnx.ModelProto, scheme: str, others: Mapping[str, str] | None = None) -> ir.Model:
    """The model with all sites packed; `others` are the schemes of some sites by name."""
    model = ir.from_proto(proto)
    normalize(model)
    sites = find_sites(model)
    schemes: dict[object, Scheme] = {site: Scheme.parse((others or {}).get(site.name, scheme)) for site in sites}
    weights = {
        site.weight: quantize_without_statistics([site.weight], schemes[site].format, torch.device("cpu"))[0].packed
        for site in sites
    }
    PackSites(schemes, weights)(model)  # type: ignore[arg-type]
    return model


def decoded(proto: onnx.ModelProto, scheme: str) -> list[np.ndarray]:
    """Float64 [K, N]: what is left of the weight of each site."""
    model = ir.from_proto(proto)
    normalize(model)
    fmt = Scheme.parse(scheme).format
    weights = [quantize_without_statistics([site.weight], fmt, torch.device("cpu"))[0] for site in find_sites(model)]
    return [weight.decode().double().numpy().T for weight in weights]


def fuse(model: ir.Model) -> bool:
    """All passes that fuse packed operators, as `compile` runs them; whether one of them changed anything."""
    return pipelines.run(pipelines.after_packing(plain=True), model)


def serialized(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.all_nodes() if node.domain == "qxc")


def weight_bytes(model: ir.Model) -> int:
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(t.nbytes for t in tensors if t is not None and len(t.shape) in (3, 4) and t.dtype != ir.DataType.INT64)


def outputs(model: bytes, feeds: dict[str, np.ndarray], isa: str | None) -> list[np.ndarray]:
    session = session_of(model, isa)
    wanted = {value.name for value in session.get_inputs()}
    return session.run(None, {name: array for name, array in feeds.items() if name in wanted})


def check_fused(model: ir.Model, feeds: dict[str, np.ndarray], saved: int = 0) -> None:
    """Fuse, and see that kernels and function bodies compute what they did, from as many bytes but those `saved`."""
    before, stored = serialized(model), weight_bytes(model)
    assert fuse(model)
    after = serialized(model)
    onnx.checker.check_model(onnx.load_model_from_string(after))
    assert weight_bytes(model) == stored - saved
    for isa in (BEST, None):
        for y, reference in zip(outputs(after, feeds, isa), outputs(before, feeds, isa), strict=True):
            assert relative_error(y, reference) <= 5e-5


def check_untouched(model: ir.Model) -> None:
    before = serialized(model)
    assert not fuse(model)
    assert serialized(model) == before


def one_input(b: Builder, *names: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of an input x, float32 [batch, K]."""
    model = b.model({"x": (TensorProto.FLOAT, ["batch", K])}, list(names))
    return model, {"x": np.random.default_rng(1).standard_normal((3, K), dtype=np.float32)}


@pytest.mark.parametrize("weights", ["int4g16", "int3g32a", "int8", "lut3g16", "nf4g16", "ternaryg16", "mxfp4"])
def test_a_decoder(weights: str) -> None:
    proto, feeds = graph_models.llama(width=32, hidden=48, layers=2)
    model = packed(proto, f"{weights}/a16")
    suffix = Scheme.parse(f"{weights}/a16").format.operator_suffix
    # three tables of each layer are copies of others
    check_fused(model, feeds, saved=2 * 3 * {"nf4g16": 16, "ternaryg16": 4}.get(weights, 0))
    # query-key-value, attention output and down in each layer, and the head
    assert operators(model) == {f"MatMul{suffix}": 2 * 3 + 1, f"SwiGlu{suffix}": 2, f"Gather{suffix}": 1}
    roles = Counter(node.metadata_props[ROLE] for node in model.graph if node.domain == "qxc")
    assert (roles["query_key_value"], roles["gate_up"], roles["query"], roles["up"]) == (2, 2, 0, 0)
    assert {function.name for function in model.functions.values()} == set(operators(model))


def test_one_codebook_a_tensor_is_not_shared() -> None:
    check_untouched(packed(graph_models.llama(width=32, hidden=48)[0], "lut3g16t/a16"))


@pytest.mark.parametrize("name", ["gpt2", "phi3"])
def test_models_without_the_patterns(name: str) -> None:
    check_untouched(packed(getattr(graph_models, name)()[0], "int8g16/a16"))


def test_only_one_layer_may_end_within_a_tile() -> None:
    b = Builder()
    ends = [b.linear("x", K, n, name=f"l{n}") for n in (20, 16, 24, 48)]
    proto, feeds = one_input(b, *ends)
    model = packed(proto, "int4g16/a32")
    check_fused(model, feeds)
    assert sorted(node.name or "" for node in model.graph) == ["l16+l48+l20", "l16+l48+l20.split", "l24"]
    assert [value.name for value in model.graph.outputs] == ends


@pytest.mark.parametrize("with_bias", [(1, 1, 1), (1, 0, 1), (0, 0, 0), ("one", 1, 0), ("one", "one", "one")])
def test_biases_of_layers_that_share_an_input(with_bias: tuple[object, ...]) -> None:
    b = Builder()
    ends = []
    for index, bias in enumerate(with_bias):
        n = 16 * (index + 1)
        biases = [b.weight(1 if bias == "one" else n)] if bias else []
        ends.append(b.op("Gemm", "x", b.weight(n, K), *biases, transB=1))
    proto, feeds = one_input(b, *ends)
    model = packed(proto, "int4g16/a32")
    check_fused(model, feeds)
    (node,) = [node for node in model.graph if node.domain == "qxc"]
    assert node.inputs[-1].shape == ((96,) if any(with_bias) else (1,))  # type: ignore[union-attr]


def test_one_bias_times_other_factors() -> None:
    """And with the name that a node named `fc` would give its bias."""
    b = Builder()
    bias = b.weight(20, name="fc.bias")
    ends = [b.op("Gemm", "x", b.weight(20, K), bias, transB=1, beta=beta, name="fc") for beta in (2.0, 1.0, -0.5)]
    proto, feeds = one_input(b, *ends)
    model = packed(proto, "int4g16/a32")
    values = b.initializers["fc.bias"]
    for y, weight, beta in zip(
        outputs(serialized(model), feeds, None), decoded(proto, "int4g16/a32"), (2.0, 1.0, -0.5), strict=True
    ):
        assert relative_error(y, feeds["x"] @ weight + beta * numpy_helper.to_array(values)) <= 2e-6


def gated(
    b: Builder, gate: str, up: str, silu_first: bool = True, gate_first: bool = True, activated: str = ""
) -> tuple[str, str]:
    """silu(gate) * up, and its sigmoid."""
    sigmoid = activated or b.op("Sigmoid", gate)
    silu = b.op("Mul", *((gate, sigmoid) if gate_first else (sigmoid, gate)))
    return b.op("Mul", *((silu, up) if silu_first else (up, silu))), sigmoid


@pytest.mark.parametrize("silu_first", [True, False])
@pytest.mark.parametrize("gate_first", [True, False])
@pytest.mark.parametrize("bias", [(False, False), (True, False), (True, True)])
def test_gate_in_any_order(silu_first: bool, gate_first: bool, bias: tuple[bool, bool]) -> None:
    b = Builder()
    gate, up = (b.op("Gemm", "x", b.weight(48, K), *([b.weight(48)] * has), transB=1) for has in bias)
    y, _ = gated(b, gate, up, silu_first, gate_first)
    proto, feeds = one_input(b, y)
    model = packed(proto, "int4g16/a32")
    check_fused(model, feeds)
    assert [node.op_type for node in model.graph] == ["SwiGluInt4"]
    assert model.graph.outputs[0].name == y


@pytest.mark.parametrize(("alpha", "fused"), [(None, True), (1.0, True), (1.702, False)])
def test_swish_of_opset_24(alpha: float | None, fused: bool) -> None:
    b = Builder(opset=24)
    gate, up = b.linear("x", K, 32), b.linear("x", K, 32)
    y = b.op("Mul", b.op("Swish", gate, **({} if alpha is None else {"alpha": alpha})), up)
    proto, feeds = one_input(b, y)
    proto.ir_version = 10
    model = packed(proto, "int4g16/a32")
    check_fused(model, feeds)
    assert [node.op_type for node in model.graph] == (
        ["SwiGluInt4"] if fused else ["MatMulInt4", "Split", "Swish", "Mul"]
    )


@pytest.mark.parametrize("read", ["gate", "up", "sigmoid", "silu"])
@pytest.mark.parametrize("by", ["output", "node"])
def test_what_something_else_reads_is_still_there(read: str, by: str) -> None:
    b = Builder()
    gate, up = b.linear("x", K, 32), b.linear("x", K, 32)
    y, sigmoid = gated(b, gate, up)
    value = {"gate": gate, "up": up, "sigmoid": sigmoid, "silu": b.nodes[-2].output[0]}[read]
    proto, feeds = one_input(b, y, value if by == "output" else b.op("Neg", value))
    model = packed(proto, "int4g16/a32")
    check_fused(model, feeds)  # gate and up share their input
    assert operators(model) == {"MatMulInt4": 1}


def test_layers_of_different_schemes_inputs_and_sizes_stay_apart() -> None:
    b = Builder()
    gate, up = b.linear("x", K, 32, name="gate"), b.linear("x", K, 32, name="up")
    y, _ = gated(b, gate, up)
    proto, _ = one_input(b, y)
    for other in ("int4g32/a16", "int4g16/a8", "int4g16a/a16", "nf4g16/a16"):
        check_untouched(packed(proto, "int4g16/a16", {"up": other}))
    check_untouched(packed(proto, "lut4g16/a16", {"up": "nf4g16/a16"}))  # one operator, other codebooks

    b = Builder()
    y, _ = gated(b, b.linear("x", K, 32), b.linear(b.op("Neg", "x"), K, 32))
    check_untouched(packed(one_input(b, y)[0], "int4g16/a16"))

    b = Builder()
    gate = b.linear("x", K, 32)
    y, _ = gated(b, gate, b.op("Add", gate, b.scalar(1)))
    check_untouched(packed(one_input(b, y)[0], "int4g16/a16"))


def test_gates_that_end_within_a_tile_share_an_input_at_most() -> None:
    b = Builder()
    y, _ = gated(b, b.linear("x", K, 24), b.linear("x", K, 24))
    check_untouched(packed(one_input(b, y)[0], "int4g16/a16"))


def test_weights_that_something_else_reads_are_not_stored_twice() -> None:
    b = Builder()
    shared = b.weight(K, 32)
    gate = b.op("MatMul", "x", shared)
    y, _ = gated(b, gate, b.linear("x", K, 32))
    again = b.op("MatMul", b.op("Neg", "x"), shared)
    check_untouched(packed(one_input(b, y, again)[0], "int4g16/a16"))

    b = Builder()
    y, _ = gated(b, b.op("MatMul", "x", shared := b.weight(K, 32)), b.op("MatMul", "x", shared))
    check_untouched(packed(one_input(b, y)[0], "int4g16/a16"))


def test_blocks_stay_apart() -> None:
    """The keys and values of all layers that attend to one encoder's output are not computed at once."""
    proto, feeds = graph_models.encoder_decoder(layers=2)
    model = packed(proto, "int8g16/a32")
    check_fused(model, feeds)
    names = [node.name or "" for node in model.graph if node.domain == "qxc" and "encoded" in
             {value.name for value in node.inputs if value is not None}]  # fmt: skip
    assert [name.count("+") for name in names] == [1, 1]


def test_the_branches_of_an_if() -> None:
    b = Builder()
    weights = [b.weight(K, 32) for _ in range(4)]

    def branch(name: str, gate: str, up: str) -> onnx.GraphProto:
        inner = Builder()
        y, _ = gated(inner, inner.op("MatMul", "x", gate), inner.op("MatMul", "x", up))
        for node in inner.nodes:
            node.input[:] = [f"{name}_{i}" if i.startswith("v") else i for i in node.input]
            node.output[:] = [f"{name}_{o}" for o in node.output]
        return helper.make_graph(
            inner.nodes, name, [], [helper.make_tensor_value_info(f"{name}_{y}", TensorProto.FLOAT, None)]
        )

    y = b.op("If", "c", then_branch=branch("then", *weights[:2]), else_branch=branch("else", *weights[2:]))
    # of a layer outside and one in a branch, neither may move
    outer = b.linear("x", K, 32)
    inputs = {"x": (TensorProto.FLOAT, ["batch", K]), "c": (TensorProto.BOOL, [])}
    feeds = {"x": np.random.default_rng(1).standard_normal((3, K), dtype=np.float32)}
    for condition in (True, False):
        model = packed(b.model(inputs, [y, outer]), "int4g16/a32")
        check_fused(model, feeds | {"c": np.array(condition)})
        assert operators(model) == {"SwiGluInt4": 2, "MatMulInt4": 1}


def test_a_gate_outside_a_loop_stays_outside() -> None:
    b = Builder()
    gate, up = b.linear("x", K, 32), b.linear("x", K, 32)
    sigmoid = b.op("Sigmoid", gate)
    body = helper.make_graph(
        [
            helper.make_node("Mul", [gate, sigmoid], ["silu"]),
            helper.make_node("Mul", ["silu", up], ["product"]),
            helper.make_node("Identity", ["go_on"], ["still"]),
        ],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("go_on", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []),
         helper.make_tensor_value_info("product", TensorProto.FLOAT, None)],
    )  # fmt: skip
    y = b.op("Loop", b.constant(np.array(2)), b.constant(np.array(True)), body=body)
    proto, feeds = one_input(b, y)
    model = packed(proto, "int4g16/a32")
    check_fused(model, feeds)
    assert operators(model) == {"MatMulInt4": 1}


def added(
    rows: tuple[int, ...], constant: tuple[int, ...], first: bool = False, N: int = 20, dtype: type = np.float32
) -> tuple[onnx.ModelProto, np.ndarray, np.ndarray]:
    """A `MatMul` with [*rows, K] and an `Add` of a constant, that constant, and an input."""
    b = Builder()
    bias = b.random.standard_normal(constant).astype(dtype)
    product = b.op("MatMul", "x", b.constant(b.random.standard_normal((K, N)).astype(dtype)))
    y = b.op("Add", *((b.constant(bias), product) if first else (product, b.constant(bias))))
    x = b.random.standard_normal((*rows, K)).astype(dtype)
    tensor_type = helper.np_dtype_to_tensor_dtype(x.dtype)
    return b.model({"x": (tensor_type, x.shape)}, [y]), bias, x


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("rows", "constant"),
    [
        *[((), shape) for shape in [(), (1,), (20,)]],
        *[((3,), shape) for shape in [(), (1,), (20,), (1, 20), (1, 1)]],
        *[((2, 3), shape) for shape in [(), (1,), (20,), (1, 20), (1, 1, 20), (1, 1)]],
    ],
)
def test_an_added_constant_becomes_the_bias(
    rows: tuple[int, ...], constant: tuple[int, ...], first: bool, dtype: type
) -> None:
    proto, bias, x = added(rows, constant, first, dtype=dtype)
    model = packed(proto, "int4g16/a32")
    output = model.graph.outputs[0]
    name, shape, output_type = output.name, output.shape, output.type
    assert fuse(model)
    (node,) = model.graph
    assert node.op_type == "MatMulInt4"
    output = model.graph.outputs[0]
    assert (output.name, output.shape, output.type) == (name, shape, output_type)
    assert set(model.graph.initializers.values()) == set(node.inputs[1:])
    onnx.checker.check_model(ir.to_proto(model))

    (weight,) = decoded(proto, "int4g16/a32")
    expected = x.astype(np.float64) @ weight + bias
    for isa in (BEST, None):
        (y,) = outputs(serialized(model), {"x": x}, isa)
        assert y.dtype == dtype
        assert relative_error(y, expected) <= (2e-6 if dtype == np.float32 else 2**-11)


@pytest.mark.parametrize(
    ("rows", "constant", "N"),
    [
        *[((), shape, 20) for shape in [(1, 20), (1, 1)]],
        *[((3,), shape, 20) for shape in [(3, 20), (3, 1), (1, 1, 20), (1, 1, 1)]],
        *[((2, 3), shape, 20) for shape in [(3, 20), (3, 1), (2, 1, 20), (2, 1, 1), (1, 1, 1, 20)]],
        ((3,), (5,), 1),
        ((3,), (0,), 1),
    ],
)
def test_a_constant_that_differs_by_row_or_makes_the_output_larger_stays(
    rows: tuple[int, ...], constant: tuple[int, ...], N: int
) -> None:
    check_untouched(packed(added(rows, constant, N=N)[0], "int4g16/a32"))


@pytest.mark.parametrize(("constant", "fused"), [((1,), True), ((20,), True), ((1, 20), False)])
def test_a_product_of_unknown_rank(constant: tuple[int, ...], fused: bool) -> None:
    b = Builder()
    y = b.op("Add", b.linear(b.op("Reshape", "x", "shape"), K, 20), b.weight(*constant))
    inputs = {"x": (TensorProto.FLOAT, [1, K]), "shape": (TensorProto.INT64, ["rank"])}
    model = packed(b.model(inputs, [b.op("Reshape", y, b.ints(1, 20))]), "int4g16/a32")
    if not fused:
        check_untouched(model)
        return
    x = b.random.standard_normal((1, K)).astype(np.float32)
    for shape in ([K], [1, 1, K]):
        feeds = {"x": x, "shape": np.array(shape)}
        check_fused(model.clone(), feeds)


@pytest.mark.parametrize(
    "case", ["not constant", "itself", "output", "read twice", "has a bias", "has one number", "no Add"]
)
def test_additions_that_stay(case: str) -> None:
    b = Builder()
    product = b.linear("x", K, 20)
    if case.startswith("has"):
        product = b.op("Gemm", "x", b.weight(20, K), b.weight(20 if case == "has a bias" else 1), transB=1)
    ends = [b.op("Sub" if case == "no Add" else "Add", product, b.weight(20))]
    if case == "not constant":
        ends = [b.op("Add", product, b.op("Slice", "x", b.ints(0), b.ints(20), b.ints(1)))]
    elif case == "itself":
        ends = [b.op("Add", product, product)]
    elif case == "output":
        ends.append(product)
    elif case == "read twice":
        ends.append(b.op("Neg", product))
    check_untouched(packed(one_input(b, *ends)[0], "int4g16/a32"))


def test_a_bias_of_gemm_that_is_zero_takes_the_constant() -> None:
    b = Builder()
    product = b.op("Gemm", "x", b.weight(20, K), b.constant(np.zeros(1, np.float32)), transB=1)
    proto, feeds = one_input(b, b.op("Add", product, b.weight(20)))
    model = packed(proto, "int4g16/a32")
    check_fused(model, feeds)
    assert [node.op_type for node in model.graph] == ["MatMulInt4"]


@pytest.mark.parametrize(("shape", "dtype"), [((64,), np.float32), ((1, 64), np.float32), ((64,), np.float16)])
def test_one_constant_added_in_many_places(shape: tuple[int, ...], dtype: type) -> None:
    """Query, key and value, and gate and up, of two layers, all with one bias."""
    b = Builder()
    bias = b.constant(b.random.standard_normal(shape).astype(dtype))

    def layer(x: str, k: int) -> str:
        weight = b.constant((b.random.standard_normal((k, 64)) / k**0.5).astype(dtype))
        return b.op("Add", b.op("MatMul", x, weight), bias)

    value = "x"
    for _ in range(2):
        value = b.op("Sum", *(layer(value, K if value == "x" else 64) for _ in range(3)))
        value, _ = gated(b, layer(value, 64), layer(value, 64))
    x = b.random.standard_normal((3, K)).astype(dtype)
    proto = b.model({"x": (helper.np_dtype_to_tensor_dtype(x.dtype), ["batch", K])}, [value])
    model = packed(proto, "int8g16/a32")
    if dtype == np.float32:
        check_fused(model, {"x": x})
    else:
        fuse(model)
    assert [node.op_type for node in model.graph] == ["MatMulInt8", "Split", "Sum", "SwiGluInt8"] * 2


def test_an_addition_in_a_branch() -> None:
    """One of a product in the same branch, and one of a product outside."""
    b = Builder()
    outer, bias, weight = b.linear("x", K, 20), b.weight(20), b.weight(K, 20)
    then_branch = helper.make_graph(
        [helper.make_node("Add", [outer, bias], ["then"])],
        "then_branch", [], [helper.make_tensor_value_info("then", TensorProto.FLOAT, None)],
    )  # fmt: skip
    else_branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", weight], ["product"]), helper.make_node("Add", ["product", bias], ["else"])],
        "else_branch", [], [helper.make_tensor_value_info("else", TensorProto.FLOAT, None)],
    )  # fmt: skip
    y = b.op("If", "c", then_branch=then_branch, else_branch=else_branch)
    inputs = {"x": (TensorProto.FLOAT, ["batch", K]), "c": (TensorProto.BOOL, [])}
    x = np.random.default_rng(1).standard_normal((3, K), dtype=np.float32)
    for condition in (True, False):
        model = packed(b.model(inputs, [y]), "int4g16/a32")
        check_fused(model, {"x": x, "c": np.array(condition)})
        assert Counter(node.op_type for node in model.graph.all_nodes()) == {"If": 1, "MatMulInt4": 2, "Add": 1}


def test_an_encoder() -> None:
    proto, feeds = graph_models.bert(width=32, layers=2)
    model = packed(proto, "int8g16/a32")
    check_fused(model, feeds)
    # query-key-value, attention output and both of the MLP in each layer
    assert operators(model)["MatMulInt8"] == 2 * 4
    # of two residuals, the mask and the GELU in each layer, and of the embeddings
    assert [node.op_type for node in model.graph].count("Add") == 2 * 4 + 1


def test_a_decoder_of_float16() -> None:
    """As a public converter makes it of a float32 model."""
    proto, feeds = graph_models.llama(width=32, hidden=48, layers=2)
    model = packed(convert_float_to_float16(proto), "int4g16/a32")
    feeds = {name: array.astype(np.float16) if array.dtype == np.float32 else array for name, array in feeds.items()}
    before = serialized(model)
    assert fuse(model)
    assert operators(model) == {"MatMulInt4": 2 * 3 + 1, "SwiGluInt4": 2, "GatherInt4": 1}
    for isa in (BEST, None):
        for y, reference in zip(outputs(serialized(model), feeds, isa), outputs(before, feeds, isa), strict=True):
            assert y.dtype == np.float16
            assert relative_error(y.astype(np.float32), reference.astype(np.float32)) <= 2**-10


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", [(32, 32), (48, 16, 16)])
def test_layers_of_float16_are_fused_and_rounded_once(sizes: tuple[int, ...], bias: bool) -> None:
    """Gate and up, or query, key and value, against float64."""
    b = Builder()
    halves = [b.random.standard_normal((n,)).astype(np.float16) for n in sizes]
    ends = [b.op("MatMul", "x", b.constant(b.random.standard_normal((K, n)).astype(np.float16))) for n in sizes]
    if bias:
        ends = [b.op("Add", end, b.constant(half)) for end, half in zip(ends, halves, strict=True)]
    gates = len(sizes) == 2
    x = b.random.standard_normal((3, K)).astype(np.float16)
    proto = b.model({"x": (TensorProto.FLOAT16, ["batch", K])}, [gated(b, *ends)[0]] if gates else ends)
    model = packed(proto, "int3g16/a32")
    assert fuse(model)
    assert [node.op_type for node in model.graph] == (["SwiGluInt3"] if gates else ["MatMulInt3", "Split"])

    weights = decoded(proto, "int3g16/a32")
    expected = [x.astype(np.float64) @ w + half * bias for w, half in zip(weights, halves, strict=True)]
    if gates:
        gate, up = expected
        expected = [gate / (1 + np.exp(-gate)) * up]
    for isa in (BEST, None):
        for y, reference in zip(outputs(serialized(model), {"x": x}, isa), expected, strict=True):
            assert y.dtype == np.float16
            assert relative_error(y, reference) <= 2**-11
