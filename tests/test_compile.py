"""The whole compiler on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import graph_models
import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import save_onnx

import qxcompiler
from qxcompiler.graph import raise_opset

QUICK = {"samples": 6, "length": 16}


def run(session: onnxruntime.InferenceSession, feeds):
    wanted = {value.name for value in session.get_inputs()}
    return session.run(None, {name: array for name, array in feeds.items() if name in wanted})


def stock_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds_of(folder, name="llama", **settings):
    """A model of `graph_models` on disk, and inputs for it."""
    model, feeds = getattr(graph_models, name)(**settings)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx", feeds


def told(report):
    """The warnings, but for the one that a model as tiny as ours does not become smaller."""
    return [warning for warning in report.warnings if "not smaller" not in warning]


def relative_error(y, reference):
    return np.linalg.norm(y - reference) / np.linalg.norm(reference)


@pytest.mark.parametrize(
    ("weights", "activations", "bound"),
    [
        ("int8g16", "a16", 0.02),
        ("int8", "a8", 0.05),
        ("int6g16a", "a16", 0.06),
        ("int5g32a", "a16", 0.12),
        ("int4g16a", "a16", 0.2),
        ("int3g16", "a16", 0.5),
        ("int2g16a", "a16", 0.9),
        ("lut4g32", "a16", 0.2),
        ("lut3g128t", "a8", 0.5),
        ("lut2", "a16", 0.9),
        ("nf4g64", "a16", 0.2),
        ("ternaryg64", "a16", 0.9),
        ("mxfp4", "a16", 0.3),
        ("mxfp6e2m3", "a8", 0.1),
        ("fp8e4m3g32", "a16", 0.08),
        ("int4g16a", "a32", 0.2),
        ("int4g16ah", "a16", 0.2),
        ("lut4g16h", "a8", 0.2),
    ],
)
def test_a_language_model_follows_the_original(tiny, weights, activations, bound):
    out = tiny.folder / "out"
    report = qxcompiler.compile(
        tiny.model,
        "cpu-x86",
        out,
        weights=weights,
        activations=activations,
        calibration=tiny.calibration,
        **QUICK,
    )
    (data,) = out.glob("model.onnx.*.data")
    assert {path.name for path in out.iterdir()} == {
        "model.onnx", data.name, "plan.yaml", "report.json", "compile.yaml", "tokenizer.json", "config.json",
    }  # fmt: skip
    _, feeds = graph_models.llama(vocabulary=64)
    feeds = {"input_ids": feeds["ids"], "position_ids": feeds["positions"], **feeds}
    expected = run(stock_session(tiny.model), feeds)
    packed = run(qxcompiler.session(out / "model.onnx"), feeds)
    stock = run(stock_session(out / "model.onnx"), feeds)
    for name, y, y_stock, reference in zip(("logits", *"kvkv"), packed, stock, expected, strict=True):
        if activations != "a8":
            np.testing.assert_allclose(y, y_stock, rtol=1e-3, atol=1e-3 * np.abs(reference).max(), err_msg=name)
        else:  # a difference in the last bit can move an activation to the next int8
            assert relative_error(y, y_stock) < 0.02, name
        assert relative_error(y, reference) < bound, name
    assert [site.scheme for site in report.sites if site.role == "query"] == [f"{weights}/{activations}"] * 2
    assert not [node for node in onnx.load(out / "model.onnx").graph.node if node.op_type == "Gemm"]


def test_what_lies_beside_the_model_goes_along(tmp_path):
    model, _ = feeds_of(tmp_path, "mlp", widths=(64, 64, 64))
    companions = {"config.json", "normalizer.json", "merges.txt", "vocab.json", "source.spm", "chat_template.jinja"}
    for name in (*companions, "README.md", "training_args.bin"):
        (tmp_path / name).write_text("{}")
    out = tmp_path / "out"
    qxcompiler.compile(model, "cpu-x86", out, quantizer="rtn")
    assert companions <= {path.name for path in out.iterdir()}
    assert not (out / "README.md").exists() and not (out / "training_args.bin").exists()


def test_the_report_counts_what_is_stored(tiny):
    out = tiny.folder / "out"
    report = qxcompiler.compile(tiny.model, "cpu-x86", out, weights="int3g16a", calibration=tiny.calibration, **QUICK)
    assert json.loads((out / "report.json").read_text()) == json.loads(report.model_dump_json())
    assert report.bytes_after == sum(path.stat().st_size for path in out.glob("model.onnx*"))
    assert report.bytes_before == tiny.model.stat().st_size
    model = onnx.load(out / "model.onnx")
    stored = sum(
        numpy_helper.to_array(tensor).nbytes
        for tensor in model.graph.initializer
        if tensor.name.endswith((".packed", ".scales", ".row_scales", ".zero_points", ".codebook"))
    )
    assert sum(site.bytes for site in report.sites) == stored
    weights = sum(site.in_features * site.out_features for site in report.sites if site.bytes)
    assert report.bits_per_weight == pytest.approx(8 * stored / weights)
    # the tied head and embedding share one packed tensor
    tied = [site for site in report.sites if site.role in ("head", "embedding")]
    assert len(tied) == 2
    assert sorted(site.bytes > 0 for site in tied) == [False, True]
    assert report.verification.samples == 2
    assert all(0 < site.error < 0.6 for site in report.sites)


def test_inspect_reads_original_and_compiled_alike(tiny):
    out = tiny.folder / "out"
    report = qxcompiler.compile(tiny.model, "cpu-x86", out, weights="lut3g16", calibration=tiny.calibration, **QUICK)
    before, after = qxcompiler.inspect(tiny.model), qxcompiler.inspect(out / "model.onnx")
    assert [site.name for site in before.sites] == [site.name for site in report.sites]
    floats, reported = ({site.name: site for site in sites} for sites in (before.sites, report.sites))
    parts = [site.name.split("+") for site in after.sites]  # query and key are fused
    assert sorted(name for names in parts for name in names) == sorted(floats)
    assert [site.role for site in after.sites].count("query_key_value") == 2
    for site, names in zip(after.sites, parts, strict=True):
        assert len(names) == (2 if site.role == "query_key_value" else 1)
        assert {floats[name].in_features for name in names} == {site.in_features}
        assert {floats[name].block for name in names} == {site.block}
        assert {reported[name].scheme for name in names} == {site.format}
        assert sum(floats[name].out_features for name in names) == site.out_features
        assert sum(reported[name].bytes for name in names) == site.bytes
        assert len(names) > 1 or floats[names[0]].role == site.role
    assert after.bits_per_weight == pytest.approx(report.bits_per_weight)
    assert {site.format for site in before.sites} == {"float"}


def test_a_gated_block_becomes_four_operators(tmp_path):
    model, feeds = feeds_of(tmp_path, width=32, hidden=48)
    samples = {name: np.concatenate([array, array]) for name, array in feeds.items()}
    np.savez(tmp_path / "samples.npz", **samples)
    out = tmp_path / "out"
    report = qxcompiler.compile(model, "cpu-x86", out, weights="int8g16", calibration=tmp_path / "samples.npz")
    after = qxcompiler.inspect(out / "model.onnx")
    layer = [("query_key_value", 64), ("attention_output", 32), ("gate_up", 96), ("down", 32)]
    assert [(site.role, site.out_features) for site in after.sites[1:-1]] == layer * 2
    assert [site.operator for site in after.sites if site.role == "gate_up"] == ["SwiGluInt8"] * 2
    assert len(report.sites) == 2 * 7 + 2
    assert after.bits_per_weight == pytest.approx(report.bits_per_weight)
    expected = run(stock_session(model), feeds)
    for session in (qxcompiler.session(out / "model.onnx"), stock_session(out / "model.onnx")):
        for y, reference in zip(run(session, feeds), expected, strict=True):
            assert relative_error(y, reference) < 0.02


def test_an_encoder_block_with_biases_becomes_four_operators(tmp_path):
    model, feeds = feeds_of(tmp_path, "bert", width=32)
    _, compiled = compile_and_compare(model, feeds)
    sites = [site for site in qxcompiler.inspect(tmp_path / "out" / "model.onnx").sites if site.role != "embedding"]
    assert [site.role for site in sites[:2]] == ["query_key_value", "attention_output"]
    assert len(sites) == 2 * 4
    biases = {name for node in compiled.graph.node if node.op_type == "MatMulInt8" for name in node.input[-1:]}
    assert "qxc.no_bias" not in biases


def test_kept_sites_stay_bit_for_bit(tiny):
    out = tiny.folder / "out"
    report = qxcompiler.compile(
        tiny.model,
        "cpu-x86",
        out,
        weights="int4g16",
        keep="head|embedding|^down$",
        calibration=tiny.calibration,
        **QUICK,
    )
    assert {site.role for site in report.sites if site.scheme == "float"} == {"head", "embedding", "down"}
    before, after = (
        {t.name: t for t in onnx.load(path).graph.initializer} for path in (tiny.model, out / "model.onnx")
    )
    kept = [name for name in after if name in before and np.prod(after[name].dims) > 40]
    assert len(kept) >= 3
    for name in kept:
        assert numpy_helper.to_array(after[name]).tobytes() == numpy_helper.to_array(before[name]).tobytes()


def test_an_edited_plan_is_followed(tiny):
    first, second = tiny.folder / "first", tiny.folder / "second"
    options = {"calibration": tiny.calibration, **QUICK}
    qxcompiler.compile(tiny.model, "cpu-x86", first, weights="int4g16", **options)
    plan = yaml.safe_load((first / "plan.yaml").read_text())
    name = next(site for site, scheme in plan["sites"].items() if scheme == "int4g16/a16")
    plan["sites"][name] = "lut2g32t/a8"
    (tiny.folder / "edited.yaml").write_text(yaml.safe_dump(plan))
    report = qxcompiler.compile(tiny.model, "cpu-x86", second, plan=tiny.folder / "edited.yaml", **options)
    assert {site.name: site.scheme for site in report.sites} == plan["sites"]
    assert yaml.safe_load((second / "plan.yaml").read_text()) == plan


def test_the_same_seed_writes_the_same_bytes(tiny):
    folders = tiny.folder / "a", tiny.folder / "b"
    for folder in folders:
        qxcompiler.compile(
            tiny.model, "cpu-x86", folder, weights="lut3g16", calibration=tiny.calibration, seed=3, **QUICK
        )
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == sorted(path.name for path in folders[1].iterdir())
    for name in names:
        contents = [(folder / name).read_bytes() for folder in folders]
        if name == "report.json":  # says how much memory the process had taken, which differs
            contents = [{**json.loads(content), "peak_memory_bytes": None} for content in contents]
        assert contents[0] == contents[1], name


def test_gptq_is_nearer_to_the_original_than_rounding(tiny):
    errors = {}
    for quantizer in ("rtn", "gptq"):
        out = tiny.folder / quantizer
        qxcompiler.compile(
            tiny.model, "cpu-x86", out, weights="int2g16a", keep="head|embedding", quantizer=quantizer,
            calibration=tiny.calibration, samples=24, length=24,
        )  # fmt: skip
        figures = qxcompiler.evaluate(out / "model.onnx", tiny.evaluation, windows=8, length=24, reference=tiny.model)
        errors[quantizer] = figures.kl_divergence
    assert errors["gptq"] < errors["rtn"]


@pytest.mark.parametrize("name", ["bert", "gpt2", "phi3", "encoder_decoder", "vit", "mlp"])
def test_any_architecture_calibrates_on_arrays(tmp_path, name):
    model, feeds = feeds_of(tmp_path, name, **({"widths": (32, 48, 40, 24)} if name == "mlp" else {}))
    samples = {
        key: np.repeat(array[:1], 4, axis=0) if key.startswith("past") else np.concatenate([array, array])
        for key, array in feeds.items()
    }
    np.savez(tmp_path / "samples.npz", **samples)
    out = tmp_path / "out"
    report = qxcompiler.compile(model, "cpu-x86", out, weights="int8g16", calibration=tmp_path / "samples.npz")
    assert not told(report)
    expected = run(stock_session(model), feeds)
    for session in (qxcompiler.session(out / "model.onnx"), stock_session(out / "model.onnx")):
        for y, reference in zip(run(session, feeds), expected, strict=True):
            assert relative_error(y, reference) < 0.03


def save_graph(folder, nodes, inputs, outputs, weights, opset=18, functions=(), opsets=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", opset), *opsets]
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def random(*shape, dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def compile_and_compare(model, feeds, bound=0.02, **options):
    """Compile by rounding to 8 bits without samples, and compare the outputs with the original's."""
    out = model.parent / "out"
    report = qxcompiler.compile(model, "cpu-x86", out, weights="int8g16", quantizer="rtn", **options)
    expected = run(stock_session(model), feeds)
    for session in (qxcompiler.session(out / "model.onnx"), stock_session(out / "model.onnx")):
        for y, reference in zip(run(session, feeds), expected, strict=True):
            assert y.dtype == reference.dtype
            assert y.shape == reference.shape
            error = relative_error(y.astype(np.float64), reference.astype(np.float64))
            assert error < bound
    return report, onnx.load(out / "model.onnx")


FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


@pytest.mark.parametrize("bias", [(24,), (1, 24), (1,), (), (5, 24), (5, 1)])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, -2.0)])
def test_gemm_with_any_bias(tmp_path, bias, alpha, beta):
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1, alpha=alpha, beta=beta)
    model = save_graph(
        tmp_path, [node], [("x", FLOAT, [5, 20])], [("y", FLOAT, [5, 24])],
        {"w": random(24, 20), "b": random(*bias)},
    )  # fmt: skip
    compile_and_compare(model, {"x": random(5, 20)})


def test_gemm_with_a_computed_bias(tmp_path):
    nodes = [helper.make_node("Gemm", ["x", "w", "c"], ["y"], beta=0.5)]
    model = save_graph(
        tmp_path,
        nodes,
        [("x", FLOAT, [5, 20]), ("c", FLOAT, [24])],
        [("y", FLOAT, [5, 24])],
        {"w": random(20, 24)},
    )
    compile_and_compare(model, {"x": random(5, 20), "c": random(24)})


def test_the_weight_on_the_left(tmp_path):
    model = save_graph(
        tmp_path, [helper.make_node("MatMul", ["w", "x"], ["y"])],
        [("x", FLOAT, ["b", 20, 7])], [("y", FLOAT, ["b", 24, 7])], {"w": random(24, 20)},
    )  # fmt: skip
    compile_and_compare(model, {"x": random(3, 20, 7)})


@pytest.mark.parametrize("spatial", [(7,), (4, 5), (2, 3, 4)])
def test_pointwise_convolution(tmp_path, spatial):
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], kernel_shape=[1] * len(spatial))
    model = save_graph(
        tmp_path, [node], [("x", FLOAT, [2, 20, *spatial])], [("y", FLOAT, [2, 24, *spatial])],
        {"w": random(24, 20, *[1] * len(spatial)), "b": random(24)},
    )  # fmt: skip
    compile_and_compare(model, {"x": random(2, 20, *spatial)})


def test_half_precision_model(tmp_path):
    nodes = [
        helper.make_node("Gather", ["e", "ids"], ["x"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    model = save_graph(
        tmp_path, nodes, [("ids", TensorProto.INT64, ["b", "n"])], [("y", HALF, ["b", "n", 24])],
        {"e": random(30, 20, dtype=np.float16), "w": random(20, 24, dtype=np.float16)},
    )  # fmt: skip
    compile_and_compare(model, {"ids": np.arange(12).reshape(2, 6)})


def test_weights_in_the_branches_of_an_if(tmp_path):
    def branch(weight):
        output = helper.make_tensor_value_info(f"y_{weight}", FLOAT, None)
        node = helper.make_node("MatMul", ["x", weight], [f"y_{weight}"], name=weight)
        return helper.make_graph([node], weight, [], [output])

    nodes = [
        helper.make_node("MatMul", ["v", "outer"], ["x"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("then"), else_branch=branch("else")),
    ]
    model = save_graph(
        tmp_path, nodes, [("v", FLOAT, [3, 20]), ("c", TensorProto.BOOL, [])], [("y", FLOAT, [3, 24])],
        {"outer": random(20, 20), "then": random(20, 24), "else": random(20, 24) + 1},
    )  # fmt: skip
    for condition in (True, False):
        report, _ = compile_and_compare(model, {"v": random(3, 20), "c": np.array(condition)})
    assert len(report.sites) == 3
    assert not told(report)
    feeds = [{"v": random(3, 20) + i, "c": np.array(True)} for i in range(4)]
    calibrated = qxcompiler.compile(model, "cpu-x86", tmp_path / "gptq", weights="int8g16", calibration=feeds)
    assert sum("rounded to nearest: it is used in a body alone" in warning for warning in calibrated.warnings) == 1
    assert [site.quantizer for site in calibrated.sites] == ["gptaq", "rtn", "rtn"]


def test_weights_in_a_function_called_twice(tmp_path):
    function = helper.make_function(
        "mine",
        "Layer",
        ["x", "w"],
        ["y"],
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [helper.make_opsetid("", 18)],
    )
    nodes = [
        helper.make_node("Layer", ["x", "w"], ["h"], domain="mine"),
        helper.make_node("Layer", ["h", "w"], ["y"], domain="mine"),
    ]
    model = save_graph(
        tmp_path, nodes, [("x", FLOAT, [3, 20])], [("y", FLOAT, [3, 20])], {"w": random(20, 20)},
        functions=[function], opsets=[helper.make_opsetid("mine", 1)],
    )  # fmt: skip
    report, compiled = compile_and_compare(model, {"x": random(3, 20)})
    assert [site.bytes > 0 for site in report.sites] == [True, False]
    assert len([tensor for tensor in compiled.graph.initializer if tensor.name.endswith(".packed")]) == 1


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_old_opsets_are_raised(tmp_path, opset):
    squeeze = (
        helper.make_node("Squeeze", ["h"], ["s"], axes=[0])
        if opset < 13
        else helper.make_node("Squeeze", ["h", "axes"], ["s"])
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        squeeze,
        helper.make_node("Softmax", ["s"], ["y"], axis=-1),
    ]
    weights = {"w": random(20, 24)} | ({} if opset < 13 else {"axes": np.array([0])})
    model = save_graph(tmp_path, nodes, [("x", FLOAT, [1, 3, 20])], [("y", FLOAT, [3, 24])], weights, opset=opset)
    _, compiled = compile_and_compare(model, {"x": random(1, 3, 20)}, bound=0.05)
    assert next(imported.version for imported in compiled.opset_import if not imported.domain) == 18


def test_large_weights_go_through_external_data(tmp_path):
    model = save_graph(
        tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], [("x", FLOAT, [1, 64])], [("y", FLOAT, [1, 2048])],
        {"w": random(64, 2048)},
    )  # fmt: skip
    loaded = onnx.load(model)
    onnx.save(loaded, model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = (tmp_path / "weights.bin").read_bytes()
    report, _ = compile_and_compare(model, {"x": random(1, 64)})
    assert report.bytes_before > len(before) > 64 * 2048 * 4 - 1
    assert (tmp_path / "weights.bin").read_bytes() == before


def test_a_model_in_memory_and_feeds_from_python(tmp_path):
    model, feeds = graph_models.llama(width=32, hidden=48)
    draws = np.random.default_rng(0)

    def samples():
        for _ in range(6):
            yield feeds | {"ids": draws.integers(0, 40, feeds["ids"].shape)}

    report = qxcompiler.compile(model, "cpu-x86", tmp_path / "out", weights="int8g32", calibration=samples())
    assert report.samples == 4
    assert report.bytes_before == model.ByteSize()
    assert not report.verification.made_up
    expected = run(onnxruntime.InferenceSession(model.SerializeToString()), feeds)
    for y, reference in zip(run(qxcompiler.session(tmp_path / "out" / "model.onnx"), feeds), expected, strict=True):
        assert relative_error(y, reference) < 0.02


def test_text_for_a_model_in_memory_has_no_tokenizer(tiny, tmp_path):
    with pytest.raises(qxcompiler.QxcError, match="tokenizer"):
        qxcompiler.compile(onnx.load(tiny.model), "cpu-x86", tmp_path / "out", calibration=tiny.calibration)
    assert not (tmp_path / "out").exists()


def test_what_is_compiled_without_samples_is_verified(tiny):
    out = tiny.folder / "out"
    report = qxcompiler.compile(tiny.model, "cpu-x86", out, weights="int8g16", quantizer="rtn")
    assert report.verification.made_up
    assert report.verification.outputs["logits"].judged
    assert report.verification.outputs["logits"].relative_error < 0.1
    assert report.verification.without_library["logits"].relative_error < 0.1
    unverified = qxcompiler.compile(tiny.model, "cpu-x86", out, quantizer="rtn", verification=False)
    assert unverified.verification is None
    assert "not verified: --no-verify" in unverified.warnings


def test_options_that_do_not_exist(tiny, tmp_path):
    with pytest.raises(qxcompiler.QxcError, match="wieghts"):
        qxcompiler.compile(tiny.model, "cpu-x86", tmp_path / "out", wieghts="int4")
    with pytest.raises(qxcompiler.QxcError, match="option samples"):
        qxcompiler.compile(tiny.model, "cpu-x86", tmp_path / "out", samples=0)


# Outputs of sound models: how they are declared, how they follow from h = x w, what the figures of the last one say.
OUTPUTS = {
    "zeros": (
        "float[b, 32] y, float[b, 32] z",
        "y = Neg(h)  size = Abs(h)  below = Neg(size)  z = Relu(below)",
        lambda z: z.judged and z.relative_error == 0,
    ),
    "almost zero": (
        "float[b, 32] y, float[b, 32] z",
        "y = Neg(h)  z = Mul(h, tiny)",
        lambda z: not z.judged and "too near zero" in z.note,
    ),
    "padding": ("float[b, 4, 8] z", "t = Reshape(h, shape)  z = Mul(t, rows)", lambda z: z.cosine_similarity > 0.99),
    "masked": ("float[b, 32] z", "z = Add(h, mask)", lambda z: z.cosine_similarity > 0.99 and not z.broken),
    "as many as there are": (
        "float[b, 32] y, int64[2, n] z",
        "y = MatMul(h, v)  more = Greater(h, zero)  z = NonZero(more)",
        lambda z: "another shape" in z.note,
    ),
    "a cache alone": ("float[b, 32] present_key", "present_key = Neg(h)", lambda z: z.cosine_similarity > 0.99),
    "a sequence": ("seq(float[b, 32]) z", "n = Neg(h)  z = SequenceConstruct(h, n)", lambda z: z.judged),
    "strings": ("string[b] z", "i = ArgMax<axis = -1, keepdims = 0>(h)  z = Gather(names, i)", lambda z: z.judged),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_sound_models_with_outputs_of_any_kind(tmp_path, name):
    outputs, steps, expected = OUTPUTS[name]
    mask, rows = np.zeros(32, np.float32), np.ones((1, 4, 1), np.float32)
    mask[20:], rows[:, 1:] = -np.inf, 0
    graph = f"g (float[b, 32] x) => ({outputs}) {{ h = MatMul(x, w)  {steps} }}"
    constants = {"mask": mask, "rows": rows, "shape": np.array([-1, 4, 8]), "v": random(32, 32)}
    constants |= {"zero": np.float32(0), "tiny": np.float32(1e-10), "names": np.array(["a", "b"] * 16, object)}
    model = save_onnx(tmp_path / "model.onnx", graph, w=random(32, 32), **constants)
    np.savez(tmp_path / "samples.npz", x=random(80, 32))
    options = {"weights": "int2g16" if name == "as many as there are" else "int8g16", "quantizer": "rtn"}
    report = qxcompiler.compile(
        model, "cpu-x86", tmp_path / "out", calibration=tmp_path / "samples.npz", samples=78, **options
    )
    assert report.verification.samples == 2
    assert expected(list(report.verification.outputs.values())[-1])


@pytest.mark.parametrize("bias", [0.0, 1000.0])
def test_a_cosine_over_one_number_means_nothing(tmp_path, bias):
    """It is 1, or -1 where the number is so near zero that its sign changes."""
    graph = """g (float[b, 32] x) => (float[b, 1] y)
    { h = MatMul(x, w)  z = MatMul(h, v)  sum = ReduceSum(z, last)  y = Add(sum, bias) }"""
    weights = {"w": random(32, 32), "v": random(32, 32), "last": np.array([-1]), "bias": np.float32(bias)}
    model = save_onnx(tmp_path / "model.onnx", graph, **weights)
    np.savez(tmp_path / "samples.npz", x=random(20, 32))
    options = {"weights": "int2g16", "quantizer": "rtn", "calibration": tmp_path / "samples.npz"}
    verification = qxcompiler.compile(model, "cpu-x86", tmp_path / "out", **options).verification
    assert verification.cosine_similarity == {}
    assert not verification.outputs["y"].judged
    assert "only 2 numbers" in verification.outputs["y"].note
    assert verification.outputs["y"].relative_error > 0.01


# Inputs without samples along a free first axis: how they are declared, how x follows from them, the output's shape.
INPUTS = {
    "a fixed batch": ("float[4, 32] a", "x = Neg(a)", "4, 32", {"a": random(24, 32)}),
    "no batch axis": ("float[32] a", "x = Neg(a)", "32", {"a": random(24, 32)}),
    "a condition": (
        "float[b, 32] a, bool c", "x = Where(c, a, one)", "b, 32", {"a": random(24, 32), "c": np.arange(24) % 2 > 0},
    ),
    "time-major": ("float[5, batch, 32] a", "x = Neg(a)", "5, batch, 32", {"a": random(5, 24, 32)}),
    "a shared one": (
        "float[b, 32] a, float[3, 32] s", "r = ReduceMax(s)  x = Add(a, r)", "b, 32",
        {"a": random(24, 32), "s": random(3, 32)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_of_any_layout_are_calibrated_on_and_evaluated(tmp_path, name):
    inputs, step, shape, arrays = INPUTS[name]
    graph = f"g ({inputs}) => (float[{shape}] y) {{ {step}  y = MatMul(x, w) }}"
    model = save_onnx(tmp_path / "model.onnx", graph, w=random(32, 32), one=np.ones(32, np.float32))
    np.savez(tmp_path / "samples.npz", **arrays)
    out = tmp_path / "out"
    report = qxcompiler.compile(model, "cpu-x86", out, weights="int8g16", calibration=tmp_path / "samples.npz")
    assert not told(report)
    assert [site.quantizer for site in report.sites] == ["gptaq"]
    assert not report.verification.made_up
    figures = qxcompiler.evaluate(out / "model.onnx", tmp_path / "samples.npz", reference=model)
    assert figures.windows == (6 if name == "a fixed batch" else 24)
    assert figures.relative_error < 0.02


def test_a_conversion_that_changes_the_model_is_noticed(tmp_path, monkeypatch):
    """What the compiled model is compared with is the file that was given, not what it was converted to."""

    def convert(graph, minimum):
        raise_opset(graph, minimum)
        for node in graph.graph:
            if node.op_type == "Relu":
                node.op_type = "Neg"

    monkeypatch.setattr("qxcompiler.compiler.raise_opset", convert)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    ends = [("x", FLOAT, ["n", 32])], [("y", FLOAT, ["n", 32])]
    model = save_graph(tmp_path, nodes, *ends, {"w": random(32, 32)}, opset=12)
    with pytest.raises(qxcompiler.QxcError, match="broken") as error:
        qxcompiler.compile(model, "cpu-x86", tmp_path / "out", weights="int8g16", quantizer="rtn")
    assert error.value.exit_status == 1
    assert not (tmp_path / "out").exists()
