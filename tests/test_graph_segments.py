"""Segments: together they are the model, each holds whole sites, and they pass on as little as possible."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graph_models import ARCHITECTURES, Builder, TensorProto, encoder_decoder, llama, mlp, run
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from qxcompiler.graph import extract_segment, find_segments, find_sites, normalize


def prepare(proto):
    model = ir.from_proto(proto)
    normalize(model)
    sites = find_sites(model)
    return model, sites, find_segments(model, sites)


def run_segments(model, segments, feeds, *, scale=1.0):
    """Run segment after segment; return every value that any of them gave, by name."""
    values = dict(feeds)
    final = list(model.graph.outputs)
    passed = {value for segment in segments for value in segment.outputs}
    for index, segment in enumerate(segments):
        given = {value.name for value in (*model.graph.inputs, *segment.inputs)}
        last = [v for v in final if v not in passed] if index == len(segments) - 1 else ()
        inputs = [site.input for site in segment.sites if site.input.name not in given]
        types = {name: ir.TensorType(ir.DataType.from_numpy(array.dtype)) for name, array in values.items()}
        extracted = extract_segment(model, segment, list(dict.fromkeys([*segment.outputs, *inputs, *last])), types)
        weights = {
            site.operand.name: site.operand_array(site.weight.matrix() * scale)
            for site in (*segment.others, *segment.sites)
        }
        assert {value.name for value in extracted.graph.inputs} <= given | set(weights)
        values |= run(ir.to_proto(extracted), {name: values[name] for name in given} | weights)
    return values


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_segments_run_one_after_another_are_the_model(architecture):
    proto, feeds = ARCHITECTURES[architecture]()
    model, _, segments = prepare(proto)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    logits = model.graph.outputs[0].name
    values = run_segments(model, segments, feeds)
    np.testing.assert_allclose(values[logits], run(proto, feeds)[logits], rtol=1e-5, atol=1e-5)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_site_inputs_are_the_values_of_the_whole_model():
    proto, feeds = llama()
    model, sites, segments = prepare(proto)
    watched = {site.input.name for site in sites if site.kind == "linear"}
    reference = ir.from_proto(proto)
    existing = {value.name for value in reference.graph.outputs}
    names = {value.name: value for node in reference.graph for value in node.outputs}
    reference.graph.outputs.extend(names[name] for name in sorted(watched - existing))
    expected = run(ir.to_proto(reference), feeds)
    values = run_segments(model, segments, feeds)
    assert len(watched) == 2 * 4 + 1
    for name in watched:
        np.testing.assert_allclose(values[name], expected[name], rtol=1e-5, atol=1e-5)


def test_the_weights_fed_are_the_weights_used():
    proto, feeds = mlp((6, 6, 6))
    model, sites, segments = prepare(proto)
    output = proto.graph.output[0].name
    values = run_segments(model, segments, feeds, scale=3.0)
    proto_of = {tensor.name: tensor for tensor in proto.graph.initializer}
    for site in sites:
        tensor = proto_of[site.weight.name]
        tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * np.float32(3)).tobytes()
    np.testing.assert_allclose(values[output], run(proto, feeds)[output], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("llama", [3, 1, 2, 1] * 2 + [1]),
        ("bert", [3, 1, 1, 1] * 2),
        ("gpt2", [1, 1, 1, 1] * 2 + [1]),
        ("phi3", [1, 1, 1, 1] * 2 + [1]),
        ("encoder_decoder", [3, 1, 1, 2, 1, 1, 1] * 3 + [1]),
        ("vit", [3, 1, 1, 1] * 2 + [1]),
        ("mlp", [1, 1, 1, 1]),
    ],
)
def test_a_layer_is_cut_where_little_is_alive(architecture, sizes):
    _, sites, segments = prepare(ARCHITECTURES[architecture]()[0])
    assert [len(segment.sites) for segment in segments] == sizes
    assert [s for segment in segments for s in segment.sites] == [s for s in sites if s.kind == "linear"]
    assert segments[0].others == [s for s in sites if s.kind == "embedding"]


def test_segments_pass_on_two_activations_and_some_shapes():
    _, _, segments = prepare(llama()[0])
    for before, after in pairwise(segments):
        activations = [value for value in after.inputs if value.producer().op_type != "Shape"]
        assert len(activations) in (1, 2)
        assert any(value in before.outputs for value in activations)


def test_a_value_that_lives_long_does_not_prevent_cuts():
    b, width = Builder(), 8
    first = b.linear("x", width, width)  # read by every layer that follows
    x = first
    for _ in range(20):
        x = b.op("Tanh", b.op("Add", b.linear(x, width, width), first))
    proto = b.model({"x": (TensorProto.FLOAT, ["n", width])}, [x])
    model, _, segments = prepare(proto)
    assert len(segments) > 10
    feeds = {"x": b.random.standard_normal((3, width)).astype(np.float32)}
    values = run_segments(model, segments, feeds)
    np.testing.assert_allclose(values[x], run(proto, feeds)[x], rtol=1e-5, atol=1e-5)


def test_sites_that_share_an_input_stay_together():
    _, sites, segments = prepare(encoder_decoder()[0])
    for segment in segments:
        for site in segment.sites:
            if not site.input.is_graph_input():
                assert all(o in segment.sites for o in sites if o.input is site.input)


def test_sites_that_share_a_recomputed_input_stay_together():
    b, width = Builder(), 8
    shared = b.op("Tanh", "x")  # depends on no site: every segment could compute it
    both = b.op("Add", b.linear(shared, width, width), b.linear(shared, width, width))
    proto = b.model({"x": (TensorProto.FLOAT, ["n", width])}, [b.linear(both, width, width)])
    assert [len(segment.sites) for segment in prepare(proto)[2]] == [2, 1]


def test_float16_boundaries_keep_their_type():
    b, width = Builder(), 8
    x = b.op("Cast", "x", to=TensorProto.FLOAT16)
    for _ in range(3):
        weight = b.constant(b.random.standard_normal((width, width)).astype(np.float16) / np.float16(3))
        x = b.op("Tanh", b.op("MatMul", x, weight))
    proto = b.model({"x": (TensorProto.FLOAT, ["n", width])}, [x])
    model, _, segments = prepare(proto)
    for node in model.graph:  # as if shape inference had found nothing
        for value in node.outputs:
            value.type = value.shape = None
    feeds = {"x": b.random.standard_normal((3, width)).astype(np.float32)}
    assert len(segments) == 3
    values = run_segments(model, segments, feeds)
    np.testing.assert_allclose(values[x], run(proto, feeds)[x], rtol=1e-2, atol=1e-3)


def test_a_body_with_a_site_stays_whole():
    b, width = Builder(), 8
    x = b.op("Tanh", b.linear("x", width, width))
    inner = b.weight(width, width, name="inner_weight")

    def body(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=nodes[-1].output[0])])

    # Both read x, a value of an earlier segment, from within; one also reads its shape.
    branches = {
        "then_branch": body("then", helper.make_node("MatMul", [x, inner], ["then_y"])),
        "else_branch": body(
            "else",
            helper.make_node("Shape", [x], ["else_shape"]),
            helper.make_node("Expand", [x, "else_shape"], ["else_y"]),
        ),
    }
    x = b.linear(b.op("Relu", b.linear(b.op("If", "flag", **branches), width, width)), width, width)
    proto = b.model({"x": (TensorProto.FLOAT, ["n", width]), "flag": (TensorProto.BOOL, [])}, [x])
    model, sites, segments = prepare(proto)
    assert [site.in_subgraph for site in sites] == [False, True, False, False]
    assert [len(segment.sites) for segment in segments] == [1, 1, 1]
    for flag in (True, False):
        feeds = {"x": b.random.standard_normal((3, width)).astype(np.float32), "flag": np.array(flag)}
        values = run_segments(model, segments, feeds)
        np.testing.assert_allclose(values[x], run(proto, feeds)[x], rtol=1e-5, atol=1e-5)


def test_segments_of_a_compiled_model_keep_its_functions():
    b, width = Builder(), 8
    body = [helper.make_node("MatMul", ["a", "w"], ["b"])]
    imports = [helper.make_opsetid("", b.opset)]
    b.functions.append(helper.make_function("qxc", "Packed", ["a", "w"], ["b"], body, imports))
    b.domains["qxc"] = 1
    x = b.op("Packed", b.linear("x", width, width), b.weight(width, width), domain="qxc")
    x = b.linear(x, width, width)
    proto = b.model({"x": (TensorProto.FLOAT, ["n", width])}, [x])
    model, sites, segments = prepare(proto)
    assert len(sites) == len(segments) == 2
    feeds = {"x": b.random.standard_normal((3, width)).astype(np.float32)}
    values = run_segments(model, segments, feeds)
    np.testing.assert_allclose(values[x], run(proto, feeds)[x], rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_graph_of_layers_and_additions_survives_segmentation(data):
    b, width = Builder(seed=data.draw(st.integers(0, 2**16))), 4
    values = ["x"]
    for _ in range(data.draw(st.integers(1, 14))):
        kind = data.draw(st.sampled_from(["linear", "linear", "add", "tanh", "reshape"]))
        pick = st.sampled_from(values)
        if kind == "linear":
            values.append(b.linear(data.draw(pick), width, width))
        elif kind == "add":
            values.append(b.op("Add", data.draw(pick), data.draw(pick)))
        elif kind == "tanh":
            values.append(b.op("Tanh", data.draw(pick)))
        else:  # the shape of one value, the data of another
            values.append(b.op("Reshape", data.draw(pick), b.op("Shape", data.draw(pick))))
    out = b.op("Sum", *values)
    proto = b.model({"x": (TensorProto.FLOAT, ["n", width])}, [out])
    model, sites, segments = prepare(proto)
    assert [s for segment in segments for s in segment.sites] == sites
    if sites:
        assert all(segment.sites for segment in segments)
        feeds = {"x": b.random.standard_normal((3, width)).astype(np.float32)}
        found = run_segments(model, segments, feeds)
        np.testing.assert_allclose(found[out], run(proto, feeds)[out], rtol=1e-4, atol=1e-5)
