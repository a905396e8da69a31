"""Groups: what reads one value, what has the same statistics, and what becomes one operator."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from graph_models import ARCHITECTURES, Builder, TensorProto

from qxcompiler.formats import Scheme
from qxcompiler.graph import by_operator, by_value, find_sites, inputs_of_weights, normalize
from qxcompiler.passes import FuseSharedInput, PackSites
from qxcompiler.quantizers import quantize_without_statistics

K = 16


def prepare(proto):
    model = ir.from_proto(proto)
    normalize(model)
    return model, {site.name: site for site in find_sites(model)}


def one_input(b, *names):
    return b.model({"x": (TensorProto.FLOAT, [K, K])}, list(names))


def names(groups):
    return [[site.name for site in group] for group in groups]


def test_a_value_read_along_two_axes():
    b = Builder()
    left = b.op("MatMul", b.weight(32, K), "x", name="left")
    _, sites = prepare(one_input(b, left, b.linear("x", K, 32, name="a"), b.linear("x", K, 32, name="b")))
    assert names(by_value(sites.values()).values()) == [["left", "a", "b"]]
    assert names(by_operator(sites.values())) == [["left"], ["a", "b"]]
    inputs = inputs_of_weights(sites.values())
    assert inputs[sites["a"].weight] == inputs[sites["b"].weight] == {(sites["a"].input, -1)}
    assert inputs[sites["left"].weight] == {(sites["a"].input, -2)}


def test_a_weight_that_two_sites_read():
    b = Builder()
    shared = b.weight(K, 32)
    ends = [b.op("MatMul", x, shared, name=name) for name, x in (("a", "x"), ("b", "x"), ("c", b.op("Neg", "x")))]
    _, sites = prepare(one_input(b, *ends, b.linear("x", K, 32, name="d"), b.linear("x", K, 32, name="e")))
    assert names(by_operator(sites.values())) == [["a"], ["b"], ["c"], ["d", "e"]]
    inputs = inputs_of_weights(sites.values())
    assert inputs[sites["a"].weight] == {(sites["a"].input, -1), (sites["c"].input, -1)}
    assert names(by_operator([sites["a"], sites["d"]])) == [["a", "d"]]  # where the others stay as they are


@pytest.mark.parametrize(
    ("architecture", "sizes"), [("llama", {"hidden": 48}), ("bert", {}), ("encoder_decoder", {}), ("vit", {})]
)
def test_what_the_passes_fuse(architecture, sizes):
    """Whoever chooses schemes knows beforehand which layers become one operator."""
    model, sites = prepare(ARCHITECTURES[architecture](width=32, **sizes)[0])
    expected = ["+".join(group) for group in names(by_operator(sites.values()))]
    assert any("+" in name for name in expected)
    scheme = Scheme.parse("int8g16/a16")
    weights = {
        site.weight: quantize_without_statistics([site.weight], scheme.format, torch.device("cpu"))[0].packed
        for site in sites.values()
    }
    PackSites(dict.fromkeys(sites.values(), scheme), weights)(model)
    FuseSharedInput()(model)
    found = [node.name for node in model.graph if node.domain == "qxc" and node.op_type.startswith("MatMul")]
    assert sorted(found) == sorted(expected)
