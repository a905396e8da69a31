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
from onnx import TensorProto, helper
from operator_models import available_isas, relative_error, session_of

from qxcompiler.formats import Scheme
from qxcompiler.graph import find_sites, normalize
from qxcompiler.packing import pack
from qxcompiler.passes import FuseSharedInput, FuseSwiGlu, PackSites
from qxcompiler.passes.pack_sites import ROLE
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
        site.weight: pack(quantize_without_statistics(site.weight, schemes[site].format, torch.device("cpu")).weight)
        for site in sites
    }
    PackSites(schemes, weights)(model)  # type: ignore[arg-type]
    return model


def fuse(model: ir.Model) -> bool:
    return [FuseSwiGlu()(model).modified, FuseSharedInput()(model).modified] != [False, False]


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


@pytest.mark.parametrize("name", ["gpt2", "phi3", "mlp"])
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
