"""Whatever a graph looks like, the compiled model computes what it did: in 8 bits, with and without the library."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from any_graph import check_equal, compiled, outputs, packed_operators
from graph_models import ARCHITECTURES, Builder, TensorProto
from onnx import helper, numpy_helper

from qxcompiler.errors import ModelError
from qxcompiler.graph import find_sites, load_model, normalize, overridable_inputs, raise_opset

FLOAT, BOOL, INT64 = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
K = 16
value_info = helper.make_tensor_value_info


def feed(*shape: int, **others: np.ndarray) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal(shape, dtype=np.float32), **others}


def random_weight(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) / np.float32(4)


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all bodies in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
                yield from graphs_of(body)


def without_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """No value's shape or type but those of the inputs, and of those the rank alone is lost too where it may be."""
    for graph in graphs_of(proto.graph):
        del graph.value_info[:]
        for value in graph.output:
            if graph is proto.graph:
                value.ClearField("type")
            elif value.HasField("type"):
                value.type.tensor_type.ClearField("shape")
    return proto


def without_names(proto: onnx.ModelProto) -> onnx.ModelProto:
    for graph in graphs_of(proto.graph):
        for node in graph.node:
            node.name = ""
    return proto


def with_one_name(proto: onnx.ModelProto) -> onnx.ModelProto:
    for graph in graphs_of(proto.graph):
        for node in graph.node:
            node.name = "same"
    return proto


def with_our_names(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Values are called as the compiler would call its own."""
    taken = ["qxc.no_bias", "val_0", "val_1", "val_2", "value", "value_2", "v", "node"]
    first = proto.graph.initializer[0].name
    taken += [f"{first}.packed", f"{first}.scales", "A", "qxc.split.16.16"]
    used = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    old = [name for node in proto.graph.node for name in node.output if name and name not in used]
    old += [tensor.name for tensor in proto.graph.initializer[1:]]
    names = dict(zip(old[::2], taken, strict=False))
    for graph in graphs_of(proto.graph):
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        for tensor in (*graph.initializer, *graph.value_info):
            tensor.name = names.get(tensor.name, tensor.name)
    return proto


VARIANTS = (without_shapes, without_names, with_one_name, with_our_names)


def nested() -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """Layers in the branches of an `If` in the body of a `Loop` in a branch of an `If`.

    Sibling bodies use the same names for other values; two layers of a body share an input; weights are outside, in a
    body and in a `Constant`; values of two graphs further out are read.
    """
    b = Builder()
    x = b.op("Relu", b.linear("x", K, K, bias=True, name="first"))
    outside = b.weight(K, K, name="W")

    def branch(name: str, seed: int, sign: str) -> onnx.GraphProto:
        nodes = [
            helper.make_node(
                "Constant", [], ["inner_w"], value=numpy_helper.from_array(random_weight(seed, K, K), "t")
            ),
            helper.make_node("MatMul", ["state", "inner_w"], ["a"], name="inner0"),
            helper.make_node("MatMul", ["state", outside], ["b"], name="inner"),
            helper.make_node("Add", ["a", "b"], ["c"]),
            helper.make_node("Add", ["c", x], ["d"]),
            helper.make_node(sign, ["d"], ["e"]),
        ]
        return helper.make_graph(nodes, name, [], [value_info("e", FLOAT, None)])

    def loop(name: str, seed: int) -> onnx.GraphProto:
        nodes = [
            helper.make_node("Mod", ["i", "two"], ["odd"]),
            helper.make_node("Cast", ["odd"], ["is_odd"], to=BOOL),
            helper.make_node(
                "If", ["is_odd"], ["next"],
                then_branch=branch("then", seed, "Tanh"), else_branch=branch("else", seed + 1, "Sigmoid"),
            ),
            helper.make_node("Gemm", ["next", "w", "bias"], ["out"], transB=1),
            helper.make_node("Identity", ["going"], ["still"]),
        ]  # fmt: skip
        inputs = [value_info("i", INT64, []), value_info("going", BOOL, []), value_info("state", FLOAT, None)]
        results = [value_info("still", BOOL, []), value_info("out", FLOAT, None)]
        tensors = [("w", random_weight(seed, K, K)), ("bias", random_weight(seed, K)), ("two", np.array(2))]
        body = helper.make_graph(
            nodes, name, inputs, results, [numpy_helper.from_array(array, name) for name, array in tensors]
        )
        node = helper.make_node("Loop", ["steps", "", x], ["result"], body=body)
        return helper.make_graph([node], f"{name}_branch", [], [value_info("result", FLOAT, None)])

    y = b.op("If", "flag", then_branch=loop("then", 10), else_branch=loop("else", 20))
    z = b.op("MatMul", b.op("Add", y, x), outside)
    inputs = {"x": (FLOAT, ["n", K]), "flag": (BOOL, []), "steps": (INT64, [])}
    feeds = [
        feed(3, K, flag=np.array(flag), steps=np.array(steps))
        for flag, steps in itertools.product([True, False], [0, 3])
    ]
    return b.model(inputs, [z, y]), feeds


def test_layers_in_if_and_loop_bodies_nested_twice() -> None:
    proto, feeds = nested()
    model = compiled(proto)
    assert len(packed_operators(model)) == 2 + 2 * (1 + 2 * 2)
    check_equal(proto, model, *feeds)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "nested"])
def test_variants_of_usual_models(architecture: str, variant: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    proto, feeds = nested() if architecture == "nested" else ARCHITECTURES[architecture]()
    feeds = feeds if isinstance(feeds, list) else [feeds]
    sites = len(packed_operators(compiled(proto)))
    model = compiled(variant(onnx.ModelProto.FromString(proto.SerializeToString())))
    assert len(packed_operators(model)) == sites
    check_equal(proto, model, *feeds)


def test_layers_in_a_scan() -> None:
    b = Builder()
    nodes = [
        helper.make_node("Add", ["state", "row"], ["sum"]),
        helper.make_node("MatMul", ["sum", "inner_w"], ["val_0"]),
        helper.make_node("Relu", ["val_0"], ["out"]),
        helper.make_node("Identity", ["out"], ["copy"]),
    ]
    body = helper.make_graph(
        nodes, "body",
        [value_info("state", FLOAT, [K]), value_info("row", FLOAT, [K])],
        [value_info("out", FLOAT, [K]), value_info("copy", FLOAT, [K])],
        [numpy_helper.from_array(random_weight(3, K, K), "inner_w")],
    )  # fmt: skip
    start = b.constant(np.zeros(K, np.float32))
    _, rows = b.op("Scan", start, b.linear("x", K, K), outputs=2, body=body, num_scan_inputs=1)
    proto = b.model({"x": (FLOAT, ["n", K])}, [b.linear(rows, K, K)])
    model = compiled(proto)
    assert len(packed_operators(model)) == 3
    check_equal(proto, model, feed(5, K), feed(1, K))


def test_a_convolution_and_a_product_of_unknown_rank() -> None:
    """Nothing tells the rank of what an operator of another domain gives."""
    b = Builder()
    b.domains["com.microsoft"] = 1
    hidden = b.op("Gelu", "x", domain="com.microsoft")
    y = b.op("Conv", hidden, b.constant(random_weight(0, 8, K, 1, 1)), b.weight(8))
    left = b.op("MatMul", b.constant(random_weight(1, 8, 5)), b.op("Gelu", y, domain="com.microsoft"))
    right = b.op("MatMul", b.op("Gelu", y, domain="com.microsoft"), b.constant(random_weight(2, 4, 8)))
    proto = without_shapes(b.model({"x": (FLOAT, [2, K, 5, 4])}, [y, left, right]))
    model = ir.from_proto(proto)
    normalize(model)
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    proto.graph.ClearField("value_info")
    stripped = ir.from_proto(ir.to_proto(model))
    assert len(find_sites(stripped)) == 2  # one cannot be known to be no vector
    result = compiled(ir.to_proto(stripped))
    check_equal(proto, result, feed(2, K, 5, 4))


@pytest.mark.parametrize("name", ["qxc.no_bias", "w.packed", "w.scales", "w.out", "fc.out", "qxc.scalar.0.5", "w.bias"])
def test_names_that_the_compiler_would_give(name: str) -> None:
    """A constant of the model's own under a name that a pass would give to one of its own."""
    b = Builder()
    own = b.constant(random_weight(5, K), name)
    y = b.op("Gemm", "x", b.constant(random_weight(6, K, K), "w"), b.weight(K), alpha=0.5, name="fc")
    z = b.op("Add", b.op("MatMul", y, b.constant(random_weight(7, K, K), "w2")), own)
    proto = b.model({"x": (FLOAT, ["n", K])}, [b.op("Mul", z, own)])
    check_equal(proto, compiled(proto), feed(3, K))


def test_weights_called_like_each_others_parts() -> None:
    b = Builder()
    x = "x"
    for name in ("A", "A.packed", "A.packed.packed", "A.scales", "A.packed_2"):
        x = b.op("MatMul", x, b.constant(random_weight(len(name), K, K), name), name=name)
    proto = b.model({"x": (FLOAT, ["n", K])}, [x])
    check_equal(proto, compiled(proto), feed(3, K), error=0.03)


def test_a_compiled_model_compiled_again() -> None:
    """Its packed operators stay as they are, and what is left in float is packed beside them."""
    b = Builder()
    y = b.op("Relu", b.linear("x", K, K, bias=True, name="first"))
    once = ir.to_proto(compiled(b.model({"x": (FLOAT, ["n", K])}, [y]), "int4g16/a32"))
    weights = [(name, random_weight(seed, K, K)) for seed, name in enumerate(("second", "qxc.no_bias", "other"))]
    value = y
    for name, array in weights:
        once.graph.initializer.append(numpy_helper.from_array(array, f"{name}.w"))
        once.graph.node.append(helper.make_node("MatMul", [value, f"{name}.w"], [name], name=name))
        value = name
    once.graph.output[0].name = value
    before = [node.SerializeToString() for node in once.graph.node if node.domain == "qxc"]
    again = compiled(once, "int4g16/a32")
    assert len(packed_operators(again)) == 4
    after = [node.SerializeToString() for node in ir.to_proto(again).graph.node if node.domain == "qxc"]
    assert before[0] in after
    check_equal(once, again, feed(3, K), error=0.2)
    check_equal(ir.to_proto(again), compiled(ir.to_proto(again)), feed(3, K), error=1e-6)


def test_a_foreign_function_of_our_name() -> None:
    b = Builder()
    body = [helper.make_node("Neg", ["a"], ["b"])]
    imports = [helper.make_opsetid("", 18)]
    b.functions.append(helper.make_function("qxc", "MatMulInt8", ["a"], ["b"], body, imports))
    b.domains["qxc"] = 1
    y = b.op("MatMulInt8", b.linear("x", K, K), domain="qxc")
    with pytest.raises(ModelError, match="qxc::MatMulInt8"):
        compiled(b.model({"x": (FLOAT, ["n", K])}, [y]))


def test_the_standard_under_both_its_names() -> None:
    for domains in ({"ai.onnx": 18}, {"": 18, "ai.onnx": 18}, {"ai.onnx": 17, "": 17}):
        b = Builder()
        y = b.op("Add", b.op("MatMul", "x", b.weight(K, K), domain="ai.onnx"), b.weight(K))
        b.domains = domains
        proto = b.model({"x": (FLOAT, ["n", K])}, [y])
        model = compiled(proto)
        assert packed_operators(model) == ["MatMulInt8"]
        plain = onnx.ModelProto.FromString(proto.SerializeToString())
        del plain.opset_import[:]
        plain.opset_import.append(helper.make_opsetid("", domains["ai.onnx"]))
        for node in plain.graph.node:
            node.domain = ""
        check_equal(plain, model, feed(2, K))
    b.domains = {"": 18, "ai.onnx": 17}
    with pytest.raises(ModelError, match="two versions of the standard operators"):
        normalize(ir.from_proto(b.model({"x": (FLOAT, ["n", K])}, [y])))


def test_values_that_are_read_and_given_out() -> None:
    """Outputs that are a site's own, that other nodes read, twice, and from bodies."""
    b = Builder()
    first = b.linear("x", K, K)
    second = b.op("MatMul", first, b.constant(random_weight(1, K, K), "shared"))
    third = b.op("MatMul", first, "shared")
    body = helper.make_graph([helper.make_node("Neg", [second], ["z"])], "body", [], [value_info("z", FLOAT, None)])
    other = helper.make_graph([helper.make_node("Abs", [third], ["z"])], "body", [], [value_info("z", FLOAT, None)])
    y = b.op("If", "flag", then_branch=body, else_branch=other)
    proto = b.model({"x": (FLOAT, ["n", K]), "flag": (BOOL, [])}, [first, y, second, third])
    for flag in (True, False):
        check_equal(proto, compiled(proto), feed(3, K, flag=np.array(flag)))


def test_one_weight_in_every_orientation() -> None:
    b = Builder()
    w = b.constant(random_weight(2, K, K), "w")
    turned = b.op("Transpose", w, perm=[1, 0])
    ends = [
        b.op("MatMul", "x", w),
        b.op("MatMul", "x", turned),
        b.op("Gemm", "x", w, transB=1),
        b.op("MatMul", w, b.op("Transpose", "x", perm=[1, 0])),
        b.op("Gather", w, "ids"),
        b.op("Gather", turned, "ids"),
        b.op("Conv", b.op("Unsqueeze", "x", b.ints(2)), b.op("Unsqueeze", w, b.ints(2))),
        b.op("ReduceSum", w),
    ]
    proto = b.model({"x": (FLOAT, ["n", K]), "ids": (INT64, ["m"])}, ends)
    model = compiled(proto)
    assert len(packed_operators(model)) == 6  # all but the convolution, whose weight is computed
    check_equal(proto, model, feed(3, K, ids=np.array([0, 3, -1, -K])))


def test_negative_indices_and_indices_of_any_shape() -> None:
    b = Builder()
    y = b.op("Gather", b.constant(random_weight(2, 40, K)), "ids")
    for ids in (np.array([[-1, 0], [-40, 39]]), np.array(-3), np.zeros((2, 0), np.int64)):
        proto = b.model({"ids": (INT64, list(ids.shape))}, [y])
        check_equal(proto, compiled(proto), {"ids": ids})
        narrow = b.model({"ids": (TensorProto.INT32, list(ids.shape))}, [y])
        check_equal(narrow, compiled(narrow), {"ids": ids.astype(np.int32)})


@pytest.mark.parametrize("shape", [(0, K), (2, 0, K), (K,), (1, 1, 1, K)])
def test_inputs_without_rows_and_of_any_rank(shape: tuple[int, ...]) -> None:
    b = Builder()
    y = b.op("Relu", b.linear("x", K, 8))
    proto = b.model({"x": (FLOAT, list(shape))}, [b.linear(y, 8, 1)])
    check_equal(proto, compiled(proto), feed(*shape))
    check_equal(proto, compiled(proto, "int8g16/a8"), feed(*shape), error=0.05)


def test_layers_with_a_dimension_of_zero_are_left_alone() -> None:
    b = Builder()
    empty = b.op("MatMul", "x", b.constant(np.zeros((K, 0), np.float32)))
    none = b.op("MatMul", empty, b.constant(np.zeros((0, K), np.float32)))
    proto = b.model({"x": (FLOAT, ["n", K])}, [b.linear(b.op("Add", none, "x"), K, K), empty])
    model = compiled(proto)
    assert packed_operators(model) == ["MatMulInt8"]
    check_equal(proto, model, feed(3, K))


def test_initializers_that_a_caller_could_override() -> None:
    b = Builder()
    y = b.op("Add", b.op("MatMul", "x", b.constant(random_weight(1, K, K), "w")), b.constant(random_weight(2, K), "b"))
    inputs = {"x": (FLOAT, ["n", K]), "w": (FLOAT, [K, K]), "b": (FLOAT, [K])}
    proto = b.model(inputs, [y])
    assert overridable_inputs(ir.from_proto(proto)) == ["w", "b"]
    model = compiled(proto)
    assert [value.name for value in model.graph.inputs] == ["x"]
    check_equal(proto, model, feed(3, K))
    proto.ir_version = 3
    assert overridable_inputs(ir.from_proto(proto)) == []


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types(dtype: type) -> None:
    b = Builder()
    y = b.op("MatMul", "x", b.constant(random_weight(1, K, K).astype(dtype)))
    y = b.op("Gemm", y, b.constant(random_weight(2, K, K).astype(dtype)), b.constant(random_weight(3, K).astype(dtype)))
    if dtype == np.float16:
        y = b.op("Conv", b.op("Unsqueeze", y, b.ints(2)), b.constant(random_weight(4, 8, K, 1).astype(dtype)))
    proto = b.model({"x": (helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ["n", K])}, [y])
    model = compiled(proto)
    assert len(packed_operators(model)) == (3 if dtype == np.float16 else 2)
    check_equal(proto, model, {"x": feed(3, K)["x"].astype(dtype)})


def test_bfloat16_layers_between_casts() -> None:
    """onnxruntime multiplies no bfloat16 on a CPU; packed, it runs."""
    b = Builder()
    b.initializers["w"] = numpy_helper.from_array(random_weight(1, K, K).astype(ml_dtypes.bfloat16), "w")
    y = b.op("Cast", b.op("MatMul", b.op("Cast", "x", to=16), "w"), to=FLOAT)
    model = compiled(b.model({"x": (FLOAT, ["n", K])}, [y]))
    (found,) = outputs(ir.to_proto(model).SerializeToString(), feed(3, K))
    wanted = feed(3, K)["x"] @ random_weight(1, K, K)
    assert np.linalg.norm(found - wanted) < 0.03 * np.linalg.norm(wanted)


def test_what_is_quantized_already_stays() -> None:
    b = Builder()
    b.domains["com.microsoft"] = 1
    codes = np.random.default_rng(0).integers(-127, 127, (K, K)).astype(np.int8)
    zero = b.constant(np.int8(0))
    dequantized = b.op("DequantizeLinear", b.constant(codes), b.scalar(0.01), zero)
    y = b.op("MatMul", "x", dequantized)
    quantized, scale, zero_point = b.op("DynamicQuantizeLinear", y, outputs=3)
    y = b.op("Cast", b.op("MatMulInteger", quantized, b.constant(codes), zero_point), to=FLOAT)
    y = b.op("Mul", y, b.op("Mul", scale, b.scalar(0.01)))
    blocks = b.constant(np.random.default_rng(1).integers(0, 255, (K, 1, 8)).astype(np.uint8))
    scales = b.constant(np.full(K, 0.01, np.float32))
    y = b.op("MatMulNBits", y, blocks, scales, domain="com.microsoft", K=K, N=K, bits=4, block_size=16)
    proto = b.model({"x": (FLOAT, ["n", K])}, [b.linear(y, K, K)])
    model = compiled(proto)
    assert packed_operators(model) == ["MatMulInt8"]
    kept = ["DequantizeLinear", "MatMul", "DynamicQuantizeLinear", "MatMulInteger", "MatMulNBits"]
    assert [node.op_type for node in model.graph if node.op_type in kept] == kept
    check_equal(proto, model, feed(3, K))


def test_operators_of_other_domains_that_are_called_like_ours() -> None:
    b = Builder()
    b.domains["com.foo"] = 1
    body = [helper.make_node("MatMul", ["a", "w"], ["m"]), helper.make_node("Neg", ["m"], ["b"])]
    b.functions.append(helper.make_function("com.foo", "Conv", ["a", "w"], ["b"], body, [helper.make_opsetid("", 18)]))
    y = b.op("Conv", "x", b.constant(random_weight(1, K, K)), domain="com.foo")
    proto = b.model({"x": (FLOAT, ["n", K])}, [y])
    check_equal(proto, compiled(proto), feed(3, K))
    proto.functions.pop()  # an operator that nobody knows
    model = ir.from_proto(proto)
    normalize(model)
    assert find_sites(model) == []


def recurrent(b: Builder, operator: str, gates: int) -> str:
    x = b.op("Unsqueeze", b.linear("x", K, K), b.constant(np.array([1]), f"one{b.opset}"))
    w, r = (b.constant(random_weight(seed, 1, gates * 8, width)) for seed, width in ((1, K), (2, 8)))
    outputs_of = b.op(operator, x, w, r, outputs=2, hidden_size=8)
    return outputs_of[0]


@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_operators_pass_through(operator: str, gates: int) -> None:
    b = Builder()
    proto = b.model({"x": (FLOAT, [5, K])}, [recurrent(b, operator, gates)])
    model = compiled(proto)
    assert packed_operators(model) == ["MatMulInt8"]
    check_equal(proto, model, feed(5, K))


def function(name: str, inputs: list[str], outputs: list[str], nodes: list[onnx.NodeProto], **others: object):
    imports = others.pop("imports", [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)])
    return helper.make_function("f", name, inputs, outputs, nodes, imports, **others)


def test_functions_with_attributes_bodies_and_optional_inputs() -> None:
    """Nested calls; attributes by reference and by default, in a body too; an input that a call leaves out."""
    b = Builder()
    b.domains["f"] = 1
    gemm = helper.make_node("Gemm", ["a", "w", "c"], ["y"], transB=1)
    for name in ("alpha", "beta"):
        gemm.attribute.append(onnx.AttributeProto(name=name, ref_attr_name=name, type=onnx.AttributeProto.FLOAT))
    layer = function("Layer", ["a", "w", "c"], ["y"], [gemm], attributes=["alpha"])
    layer.attribute_proto.append(helper.make_attribute("beta", 0.5))
    slope = helper.make_node("LeakyRelu", ["y"], ["z"])
    slope.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    calls = [helper.make_node("Layer", ["h", "w"], ["y"], domain="f", alpha=2.0), slope]
    then = helper.make_graph(calls, "then", [], [value_info("z", FLOAT, None)])
    other = helper.make_graph([helper.make_node("Abs", ["h"], ["z"])], "else", [], [value_info("z", FLOAT, None)])
    nodes = [
        helper.make_node("Layer", ["a", "w", "c"], ["h"], domain="f"),
        helper.make_node("If", ["flag"], ["out"], then_branch=then, else_branch=other),
    ]
    branches = function("Branches", ["a", "w", "c", "flag"], ["out", "h"], nodes, attributes=["slope"])
    b.functions.extend([branches, layer])
    w = b.constant(random_weight(1, K, K), "w")
    y, hidden = b.op("Branches", "x", w, b.weight(K, name="h"), "flag", domain="f", outputs=2, slope=0.1)
    z, _ = b.op("Branches", y, w, "h", "flag", domain="f", slope=0.3, outputs=2)
    proto = b.model({"x": (FLOAT, ["n", K]), "flag": (BOOL, [])}, [z, hidden])
    model = compiled(proto)
    assert not {name for domain, name, _ in model.functions if domain == "f"}
    assert len(packed_operators(model)) == 4
    assert [value.name for value in model.graph.outputs] == [z, hidden]
    for flag in (True, False):
        check_equal(proto, model, feed(3, K, flag=np.array(flag)))


def test_a_function_that_gives_back_what_it_is_given() -> None:
    b = Builder()
    b.domains["f"] = 1
    b.functions.append(function("F0", ["a", "w"], ["a", "m", "m"], [helper.make_node("MatMul", ["a", "w"], ["m"])]))
    ends = b.op("F0", "x", b.constant(random_weight(1, K, K)), domain="f", outputs=3)
    model = compiled(b.model({"x": (FLOAT, ["n", K])}, ends))
    same, y, again = outputs(ir.to_proto(model).SerializeToString(), feed(2, K))
    np.testing.assert_array_equal(same, feed(2, K)["x"])
    np.testing.assert_array_equal(y, again)
    assert [value.name for value in model.graph.outputs] == ends


def doubling(depth: int, leaf: str = "Relu") -> onnx.ModelProto:
    """Functions that call the next one twice."""
    b = Builder()
    b.domains["f"] = 1
    for level in range(depth):
        last = level == depth - 1
        name, domain = (leaf, "") if last else (f"F{level + 1}", "f")
        nodes = [helper.make_node(name, [x], [y], domain=domain) for x, y in (("a", "h"), ("h", "b"))]
        b.functions.append(function(f"F{level}", ["a"], ["b"], nodes))
    y = b.op("F0", b.linear("x", K, K), domain="f")
    return b.model({"x": (FLOAT, ["n", K])}, [y])


def test_functions_that_call_each_other_twice() -> None:
    start = time.monotonic()
    model = ir.from_proto(doubling(13))
    normalize(model)
    assert len(model.graph) == 8192 + 1
    assert time.monotonic() - start < 10  # it was half a minute where naming took the square of it
    start = time.monotonic()
    with pytest.raises(ModelError, match="its functions would become"):
        normalize(ir.from_proto(doubling(60)))
    assert time.monotonic() - start < 1
    check_equal(doubling(4), compiled(doubling(4)), feed(3, K))


def test_functions_that_cannot_be_inlined() -> None:
    def refused(match: str, *functions: onnx.FunctionProto) -> None:
        b = Builder()
        b.domains["f"] = 1
        b.functions.extend(functions)
        proto = b.model({"x": (FLOAT, ["n", K])}, [b.op("F0", b.linear("x", K, K), domain="f")])
        with pytest.raises(ModelError, match=match):
            normalize(ir.from_proto(proto))

    def call(name: str) -> list[onnx.NodeProto]:
        return [helper.make_node(name, ["a"], ["b"], domain="f")]

    refused("in a circle: .*f::F1", function("F0", ["a"], ["b"], call("F1")), function("F1", ["a"], ["b"], call("F0")))
    old = [helper.make_node("Softmax", ["a"], ["b"], axis=1)]
    refused("uses Softmax of opset 11", function("F0", ["a"], ["b"], old, imports=[helper.make_opsetid("", 11)]))
    refused("more inputs or outputs", function("F0", [], ["b"], [helper.make_node("Constant", [], ["b"], value_int=1)]))


def test_functions_of_an_older_opset_that_mean_the_same() -> None:
    b = Builder()
    b.domains["f"] = 1
    nodes = [helper.make_node("MatMul", ["a", "w"], ["m"], domain="ai.onnx"), helper.make_node("Relu", ["m"], ["b"])]
    b.functions.append(function("F0", ["a", "w"], ["b"], nodes, imports=[helper.make_opsetid("ai.onnx", 16)]))
    proto = b.model({"x": (FLOAT, ["n", K])}, [b.op("F0", "x", b.weight(K, K), domain="f")])
    model = compiled(proto)
    assert packed_operators(model) == ["MatMulInt8"]


def test_a_layer_that_is_a_function_of_functions_twice_in_a_loop() -> None:
    b = Builder()
    b.domains["f"] = 1
    b.functions.append(function("F1", ["a", "w"], ["b"], [helper.make_node("MatMul", ["a", "w"], ["b"])]))
    nodes = [
        helper.make_node("F1", ["a", "w"], ["t"], domain="f"),
        helper.make_node("F1", ["t", "w"], ["b"], domain="f"),
    ]
    b.functions.append(function("F0", ["a", "w"], ["b"], nodes))
    w = b.constant(random_weight(3, K, K), "w")
    body = helper.make_graph(
        [
            helper.make_node("F0", ["t", w], ["b"], domain="f"),
            helper.make_node("Identity", ["c"], ["c2"]),
        ],
        "body",
        [value_info("i", INT64, []), value_info("c", BOOL, []), value_info("t", FLOAT, None)],
        [value_info("c2", BOOL, []), value_info("b", FLOAT, None)],
    )
    y = b.op("Loop", "steps", "", b.op("F0", "x", w, domain="f"), body=body)
    proto = b.model({"x": (FLOAT, ["n", K]), "steps": (INT64, [])}, [y])
    model = compiled(proto)
    assert len(packed_operators(model)) == 4
    for steps in (0, 2):
        check_equal(proto, model, feed(3, K, steps=np.array(steps)), error=0.05)


def raised(proto: onnx.ModelProto) -> ir.Model:
    model = ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    normalize(model)
    raise_opset(model)
    assert model.opset_imports[""] == 18
    return model


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1, -2])
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Hardmax"])
def test_what_a_softmax_meant_before_opset_13(operator: str, axis: int | None, known: bool) -> None:
    b = Builder(opset=12)
    attributes = {} if axis is None else {"axis": axis}
    x = b.op("Relu", "x") if known else b.op("Reshape", "x", "shape")
    inputs = {"x": (FLOAT, [2, 3, 4]), "shape": (INT64, [None])}
    y = b.op(operator, x, name="soft", **attributes)
    proto = b.model(inputs, [y, b.op("Neg", y)])
    check_equal(proto, raised(proto), feed(2, 3, 4, shape=np.array([2, 3, 4])), error=1e-6)


@pytest.mark.parametrize("opset", [9, 10])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", [2.0, 1.5])
def test_how_images_were_resized_before_opset_11(opset: int, mode: str, scale: float) -> None:
    b = Builder(opset)
    scales = b.constant(np.array([1, 1, scale, scale], np.float32))
    y = b.op("Upsample" if opset == 9 else "Resize", "x", scales, mode=mode)
    proto = b.model({"x": (FLOAT, [1, 2, 5, 4])}, [y])
    check_equal(proto, raised(proto), feed(1, 2, 5, 4), error=1e-5)


@pytest.mark.parametrize("opset", [11, 12, 13, 14, 17])
@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_operators_of_older_opsets(operator: str, gates: int, opset: int) -> None:
    b = Builder(opset)
    x = b.op("Reshape", b.linear("x", K, K), b.ints(-1, 1, K))
    w, r = (b.constant(random_weight(seed, 1, gates * 8, width)) for seed, width in ((1, K), (2, 8)))
    y, _ = b.op(operator, x, w, r, outputs=2, hidden_size=8)
    proto = b.model({"x": (FLOAT, [5, K])}, [y])
    model = compiled(proto)
    assert packed_operators(model) == ["MatMulInt8"]
    check_equal(proto, model, feed(5, K))


@pytest.mark.parametrize("opset", range(11, 18))
def test_bodies_of_older_opsets(opset: int) -> None:
    proto, feeds = nested()
    proto.opset_import[0].version = opset
    proto.ir_version = 7
    model = compiled(proto)
    assert len(packed_operators(model)) == 12
    check_equal(proto, model, *feeds)


def test_functions_of_older_opsets() -> None:
    proto = doubling(3, "Softmax")
    proto.opset_import[0].version = 12
    for body in proto.functions:
        body.opset_import[0].version = 12
    check_equal(proto, compiled(proto), feed(3, K))


def test_sequences_stay_sequences() -> None:
    b = Builder()
    x = b.linear("x", K, K)
    both = b.op("SequenceConstruct", x, b.op("Neg", x))
    y = b.op("Relu", b.linear(b.op("ConcatFromSequence", both, axis=0), K, K))
    parts = b.op("SplitToSequence", y, axis=0)
    ends = [
        b.linear(b.op("SequenceAt", sequence, b.constant(np.int64(index))), K, K)
        for index, sequence in enumerate((both, parts))
    ]
    proto = b.model({"x": (FLOAT, ["n", K])}, [*ends, b.op("SequenceLength", parts)])
    model = compiled(proto)
    assert len(packed_operators(model)) == 4
    check_equal(proto, model, feed(3, K))


def test_layers_between_transpositions_before_after_and_in_branches() -> None:
    """Several nodes for each layer, and values outside that are called as `onnx_ir` calls what is new in a body."""

    def layers(b: Builder, x: str, seed: int) -> str:
        for index in range(2):
            bias = b.constant(random_weight(seed + 7 + index, K), f"{seed}bias{index}")
            weight = b.constant(random_weight(seed + index, K, K, 1), f"{seed}weight{index}")
            x = b.op("Relu", b.op("Conv", x, weight, bias))
        return x

    def branch(seed: int, x: str) -> onnx.GraphProto:
        inner = Builder()
        result = layers(inner, x, seed)
        for node in inner.nodes:
            node.input[:] = [name if name == x or name[0].isdigit() else f"{seed}{name}" for name in node.input]
            node.output[:] = [f"{seed}{name}" for name in node.output]
        output = value_info(f"{seed}{result}", FLOAT, None)
        return helper.make_graph(inner.nodes, "branch", [], [output], list(inner.initializers.values()))

    b = Builder()
    before = layers(b, "x", 100)
    y = b.op("If", "flag", then_branch=branch(200, before), else_branch=branch(300, "x"))
    proto = b.model({"x": (FLOAT, [2, K, "n"]), "flag": (BOOL, [])}, [layers(b, b.op("Add", y, before), 400)])
    names = {name: f"val_{index}" for index, name in enumerate([before, *(node.output[0] for node in b.nodes[:-1])])}
    for graph in graphs_of(proto.graph):
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
    model = compiled(proto)
    assert len(packed_operators(model)) == 8
    for flag in (True, False):
        check_equal(proto, model, feed(2, K, 5, flag=np.array(flag)), error=0.05)


def test_scans_of_opset_8_are_refused() -> None:
    """They had a batch axis: converted, they would take other inputs."""
    values = [helper.make_tensor_value_info(name, FLOAT, [K]) for name in ("s", "r")]
    body = helper.make_graph([helper.make_node("Relu", ["s"], ["r"])], "body", values[:1], values[1:])
    nodes = [helper.make_node("Scan", ["", "x"], ["y"], body=body, num_scan_inputs=1)]
    ends = [helper.make_tensor_value_info(name, FLOAT, [1, 3, K]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    model = load_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 8)], ir_version=8))
    normalize(model)
    with pytest.raises(ModelError, match="Scan of opset 8"):
        raise_opset(model)
