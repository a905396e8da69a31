"""The cost of whole models: what they compute, counted from the graph alone, and what it sums up to."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from attention_models import attention_model
from conftest import named_as_published
from graph_models import ARCHITECTURES, Builder, llama, mlp
from onnx import TensorProto

import qxcompiler
from qxcompiler.cost.estimate import estimate
from qxcompiler.cost.product import cost_of_attention_product
from qxcompiler.cost.shapes import infer
from qxcompiler.cost.workload import Phase, Product, workload
from qxcompiler.errors import ModelError, UnsupportedByTargetError
from qxcompiler.formats import Scheme
from qxcompiler.graph import find_sites, load_model, normalize
from qxcompiler.packing import packed_bytes
from qxcompiler.targets import Target, load_target, target_names

NPU = load_target("npu-int8")


def prepared(model: onnx.ModelProto):
    graph = load_model(model)
    normalize(graph)
    return graph, find_sites(graph)


def run_all(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """The shape of every value, as onnxruntime computes it."""
    proto = ir.to_proto(model)
    there = {output.name for output in proto.graph.output}
    for node in proto.graph.node:
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name and name not in there)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return {name: array.shape for name, array in zip(names, session.run(None, feeds), strict=True)}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shapes_are_those_of_a_run(name):
    model, feeds = ARCHITECTURES[name]()
    graph, _ = prepared(model)
    sizes = {value.name: feeds[value.name].shape for value in graph.graph.inputs}
    found = infer(graph, lambda value, axis, symbol: sizes[value.name][axis], lambda node, shapes: None)
    expected = run_all(graph, feeds)
    mine = {value.name: shape for value, shape in found.shapes.items()}
    assert {name: mine.get(name) for name in expected} == expected


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_node_of_any_model_is_counted(name):
    model, feeds = ARCHITECTURES[name]()
    graph, sites = prepared(model)
    work = workload(graph, sites, Phase("pass", 5, batch=len(next(iter(feeds.values())))), {"frames": 7})
    assert work.unknown == ()
    assert {item.name for item in work.items if item.is_site} == {site.name for site in sites}
    assert sum(N * K for N, K, _ in work.weights) == sum(
        {s.weight: s.in_features * s.out_features for s in sites}.values()
    )
    for target in map(load_target, target_names()):
        found = estimate(work, target)
        assert found.seconds > 0 and found.unknown == []
        assert found.seconds == pytest.approx(sum(found.bound_by.values()))


def test_macs_of_a_llama_are_those_of_its_formula():
    layers, width, vocabulary, hidden, heads, kv_heads, head = 2, 16, 40, 24, 4, 2, 4
    graph, sites = prepared(named_as_published(llama(layers, True, width, vocabulary, hidden)[0]))
    for phase, rows, seen in ((Phase.prefill(7), 7, 7), (Phase.decode(9), 1, 10)):
        work = workload(graph, sites, phase)
        per_token = layers * (2 * width * width + 2 * width * kv_heads * head + 3 * width * hidden) + width * vocabulary
        macs = sum(product.macs for item in work.items if item.is_site for product in item.products)
        assert macs == rows * per_token
        attention = [p for item in work.items for p in item.products if p.between]
        assert attention == [Product(rows, seen, head, heads, True), Product(rows, head, seen, heads, True)] * layers
        assert work.cached == layers * 2 * kv_heads * head * (seen + phase.past)
        assert work.tokens == rows


def test_a_model_without_a_cache_computes_everything_again():
    graph, sites = prepared(ARCHITECTURES["gpt2"]()[0])
    again, whole = (workload(graph, sites, phase) for phase in (Phase.decode(7), Phase.prefill(8)))
    assert again.items == whole.items
    assert (again.tokens, whole.tokens) == (1, 8)


def test_convolutions_and_recurrent_layers_are_products():
    b = Builder()
    y = b.op("Conv", "x", b.weight(8, 2, 3, 3), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], group=2)
    flat = b.op("Transpose", b.op("Reshape", y, b.ints(0, 8, -1)), perm=[2, 0, 1])
    lstm = b.op("LSTM", flat, b.weight(1, 20, 8), b.weight(1, 20, 5), outputs=3, hidden_size=5)
    graph, sites = prepared(b.model({"x": (TensorProto.FLOAT, ["batch", 4, "height", 6])}, [lstm[0]]))
    work = workload(graph, sites, Phase.encoder(batch=3), {"height": 10})
    products = {item.operator: item.products for item in work.items}
    assert products["Conv"] == (Product(3 * 5 * 3, 4, 2 * 9, 2),)
    assert products["LSTM"] == (Product(15 * 3, 20, 8), Product(3, 20, 5, 15))
    with pytest.raises(ModelError, match="size 'height' that the phase does not tell"):
        workload(graph, sites, Phase.encoder())


def test_a_cast_to_the_type_that_is_there_costs_nothing():
    b = Builder()
    same = b.op("Cast", b.op("Relu", "x"), to=TensorProto.FLOAT)
    y = b.op("Cast", same, to=TensorProto.FLOAT16)
    graph, sites = prepared(b.model({"x": (TensorProto.FLOAT, ["batch", 4])}, [y]))
    items = workload(graph, sites, Phase.encoder(batch=3)).items
    assert [item.operator for item in items] == ["Relu", "Cast"]


def test_attention_as_one_operator():
    b = Builder(23)
    y = b.op("Attention", "q", "k", "v")
    shape = (TensorProto.FLOAT, ["batch", 4, "length", 8])
    graph, sites = prepared(b.model({"q": shape, "k": shape, "v": shape}, [y]))
    (item,) = workload(graph, sites, Phase.prefill(6)).items
    assert item.products == (Product(6, 6, 8, 4, True, True), Product(6, 8, 6, 4, True, True))


@pytest.mark.parametrize(("name", "kept"), [("CachedAttention", None), ("CachedAttentionInt8", 66 / 64)])
def test_attention_of_ours_reads_a_cache_once_and_writes_new_rows(name, kept):
    """Two of six heads share each of three heads of keys; 5 new tokens after 8, in memory for 32."""
    row = 64 if kept is None else 66
    shapes = {"query": [2, 5, 6 * 64], "key": [2, 5, 3 * 64], "value": [2, 5, 3 * 64], "mask": [1, 1, 5, 13]}
    shapes |= {each: [2, 3, 32, row] for each in ("past_key", "past_value")}
    model = attention_model(name, 6, 3, shapes=shapes)
    graph, sites = prepared(onnx.load_model_from_string(model))
    (item,) = workload(graph, sites, Phase.prefill(5)).items
    assert item.products == (
        Product(10, 13, 64, 6, True, True, kept_bytes=kept),
        Product(10, 64, 13, 6, True, True, kept_bytes=kept),
    )
    assert (item.read, item.read_cached) == (2 * 2 * 5 * 3 * 64 + 5 * 13, 0)
    assert (item.written, item.written_cached) == (0, 2 * 2 * 3 * 5 * 64)


def test_a_cache_in_fewer_bits_costs_fewer_bytes():
    floats, codes = (
        cost_of_attention_product(NPU, 3, 1000, 64, cached=True, kept_bytes=kept) for kept in (None, 66 / 64)
    )
    assert codes.traffic["dram"].read < 0.6 * floats.traffic["dram"].read


def test_a_compiled_model_costs_what_its_plan_did(tiny, tmp_path):
    """Weights as packed; fusing leaves fewer operators to start."""
    qxcompiler.compile(tiny.model, "cpu-x86", tmp_path / "out", weights="int4g16", quantizer="rtn")
    before, sites = prepared(onnx.load(tiny.model))
    after, left = prepared(onnx.load(tmp_path / "out" / "model.onnx"))
    named = {"embedding": "int8g128", "head": "int8g128/a16"}
    plan = {site.name: Scheme.parse(named.get(site.role, "int4g16/a16")) for site in sites}
    cpu = load_target("cpu-x86")
    original = estimate(workload(before, sites, Phase.decode(8)), cpu, plan)
    compiled = estimate(workload(after, left, Phase.decode(8)), cpu)
    assert compiled.unknown == []
    assert compiled.kv_cache_bytes == original.kv_cache_bytes
    assert compiled.weight_bytes == pytest.approx(original.weight_bytes, rel=0.01)  # biases of one zero
    assert compiled.seconds == pytest.approx(original.seconds, rel=0.2)
    schemes = {row.scheme for row in compiled.items}
    assert {"int4g16/a16", "int8g128/a16", "int8g128"} <= schemes


def test_sums_of_a_model():
    widths = (64, 128, 32)
    graph, sites = prepared(mlp(widths)[0])
    scheme = Scheme.parse("int4g32/a8")
    found = estimate(workload(graph, sites, Phase.encoder(batch=3)), NPU, {site.name: scheme for site in sites})
    packed = packed_bytes(scheme.format, 128, 64) + packed_bytes(scheme.format, 32, 128)
    biases = 128 + 32
    assert found.weight_bytes == packed + 4 * biases
    # a bias is added: the product and the sum are there at once
    assert found.activation_bytes == 2 * 3 * (128 + 128)
    assert found.kv_cache_bytes == 0
    assert found.peak_bytes == found.weight_bytes + found.activation_bytes
    assert found.tokens_per_second == pytest.approx(3 / found.seconds)
    assert found.bytes["dram"] == packed + 4 * biases
    assert found.joules == pytest.approx(sum(row.joules for row in found.items))
    assert [row.scheme for row in found.items] == ["int4g32/a8", None, None, "int4g32/a8", None]


def test_a_large_model_decodes_as_fast_as_its_bytes_pass():
    graph, sites = prepared(mlp((2048, 2048, 2048))[0])
    fields = NPU.model_dump(exclude_none=True) | {"operator_overhead_cycles": 0}
    target = Target.model_validate(fields)
    plan = {site.name: Scheme.parse("int4g128/a8") for site in sites}
    found = estimate(workload(graph, sites, Phase.encoder()), target, plan)
    size = 2 * packed_bytes(Scheme.parse("int4g128").format, 2048, 2048)
    assert found.seconds == pytest.approx(size / 8e9, rel=0.02)
    assert next(iter(found.bound_by)) == "dram"


def test_what_a_target_lacks_runs_on_its_host():
    graph, sites = prepared(ARCHITECTURES["bert"]()[0])
    work = workload(graph, sites, Phase.encoder(5))
    u65 = load_target("imx93-ethos-u65")
    found = estimate(work, u65)
    assert {row.operator for row in found.items if row.bound_by == "host"} >= {"Erf", "Gather"}
    alone = u65.model_copy(update={"operators": u65.operators.model_copy(update={"host": None})})
    with pytest.raises(UnsupportedByTargetError, match="imx93-ethos-u65: has no operator"):
        estimate(work, alone)


def test_a_context_that_a_model_cannot_take_is_refused():
    b = Builder()
    y = b.op("Add", "x", b.weight(5, 4))
    graph, sites = prepared(b.model({"x": (TensorProto.FLOAT, ["batch", "length", 4])}, [y]))
    workload(graph, sites, Phase.encoder(5))
    with pytest.raises(ModelError, match="cannot take inputs of these sizes"):
        workload(graph, sites, Phase.encoder(6))


def test_sizes_beyond_any_memory_are_refused():
    graph, sites = prepared(mlp()[0])
    with pytest.raises(ModelError, match="would have the shape"):
        workload(graph, sites, Phase.encoder(batch=1 << 50))


def test_shapes_that_depend_on_numbers_are_said_to_be_unknown():
    b = Builder()
    y = b.op("Relu", b.op("Reshape", "x", "shape"))
    inputs = {"x": (TensorProto.FLOAT, ["batch", 4]), "shape": (TensorProto.INT64, [2])}
    graph, sites = prepared(b.model(inputs, [y]))
    work = workload(graph, sites, Phase.encoder())
    assert len(work.unknown) == 1
    assert estimate(work, NPU).unknown == list(work.unknown)
