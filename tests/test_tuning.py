"""Models in torch, and what is learned with them."""

from __future__ import annotations

from functools import partial

import graph_models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto

import qxcompiler
from qxcompiler.derivatives.executor import TorchModel, UndifferentiableError
from qxcompiler.errors import ModelError, QxcError
from qxcompiler.formats import parse_format
from qxcompiler.graph import find_sites
from qxcompiler.graph.normal_form import normalize
from qxcompiler.packing import pack, unpack
from qxcompiler.progress import silent
from qxcompiler.quantizers.rtn import rtn
from qxcompiler.tuning import Tuner
from qxcompiler.tuning.distillation import Example, distil, divergence
from qxcompiler.tuning.tunable import TunableWeight

CPU = torch.device("cpu")
FORMATS = [
    "int3g32",
    "int3g16a",
    "int4",
    "int3g16as8",
    "int4g32e8",
    "lut3g32",
    "lut2g16t",
    "lut4g16s8",
    "nf4g16",
    "lut3g32h",
]


def loaded(proto):
    model = ir.from_proto(proto)
    normalize(model)
    return model, find_sites(model)


def of_opset_23():
    """A decoder of one block as PyTorch's exporter writes it: attention, rotations and norms in an operator each."""
    width, heads, size = 32, 4, 8
    b = graph_models.Builder(opset=23)
    x = b.op("Gather", b.weight(40, width), "input_ids")
    normed = b.op("RMSNormalization", x, b.weight(width))
    parts = [b.linear(normed, width, n, bias=False) for n in (width, width // 2, width // 2)]
    angles = (b.weight(16, size // 2), b.weight(16, size // 2), "positions")
    query, key = (
        b.op("RotaryEmbedding", part, *angles, num_heads=count)
        for part, count in zip(parts, (heads, heads // 2), strict=False)
    )
    attributes = {"q_num_heads": heads, "kv_num_heads": heads // 2, "is_causal": 1}
    x = b.op("Add", x, b.linear(b.op("Attention", query, key, parts[2], **attributes), width, width, bias=False))
    logits = b.linear(b.op("RMSNormalization", x, b.weight(width)), width, 40, bias=False)
    free = ["batch", "length"]
    proto = b.model({"input_ids": (TensorProto.INT64, free), "positions": (TensorProto.INT64, free)}, [logits])
    proto.graph.node[-1].output[0] = proto.graph.output[0].name = "logits"
    draws = np.random.default_rng(0)
    return proto, {"input_ids": draws.integers(0, 40, (2, 9)), "positions": np.tile(np.arange(9), (2, 1))}


def of_onnxruntime():
    """A decoder of one block as onnxruntime's own builder writes it: its norms and attention."""
    width, heads, size = 64, 4, 16
    b = graph_models.Builder(opset=20)
    b.domains["com.microsoft"] = 1
    x = b.op("Gather", b.weight(40, width), "input_ids")
    normed = b.op("SimplifiedLayerNormalization", x, b.weight(width), epsilon=1e-5)
    packed = b.linear(normed, width, 2 * width, bias=False)
    past = b.constant(np.zeros((1, heads // 2, 0, size), np.float32))
    last = b.op("Cast", b.op("ReduceSum", "positions", b.ints(1), keepdims=1), to=TensorProto.INT32)
    lengths = b.op("Add", b.op("Mul", last, b.constant(np.array(0, np.int32))), b.constant(np.array(8, np.int32)))
    total = b.constant(np.array(9, np.int32))
    angles = (b.weight(16, size // 2), b.weight(16, size // 2), "positions")
    attributes = {"num_heads": heads, "kv_num_heads": heads // 2, "do_rotary": 1}
    attended, _, _ = b.op(
        "GroupQueryAttention", packed, "", "", past, past, lengths, total, *angles,
        domain="com.microsoft", outputs=3, **attributes,
    )  # fmt: skip
    output = b.linear(attended, width, width, bias=False)
    normed = b.op("SkipSimplifiedLayerNormalization", output, x, b.weight(width), domain="com.microsoft", epsilon=1e-5)
    logits = b.linear(b.op("QuickGelu", normed, domain="com.microsoft"), width, 40, bias=False)
    free = ["batch", "length"]
    proto = b.model({"input_ids": (TensorProto.INT64, free), "positions": (TensorProto.INT64, free)}, [logits])
    proto.graph.node[-1].output[0] = proto.graph.output[0].name = "logits"
    draws = np.random.default_rng(0)
    return proto, {"input_ids": draws.integers(0, 40, (1, 9)), "positions": np.arange(9)[None]}


@pytest.mark.parametrize("make", [of_opset_23, of_onnxruntime])
def test_a_model_with_attention_in_an_operator_is_tuned(make, tmp_path):
    proto, feeds = make()
    draws = np.random.default_rng(1)
    samples = [feeds | {"input_ids": draws.integers(0, 40, feeds["input_ids"].shape)} for _ in range(12)]
    report = qxcompiler.compile(
        proto, "cpu-x86", tmp_path, calibration=samples, weights="lut3g32", bits_per_weight=6, tune=8, samples=8
    )
    assert report.tuning.loss_after <= report.tuning.loss_before
    assert {site.role for site in report.sites} >= {"attention_output", "head"}


def original(site):
    return site.weight.matrix()


@pytest.mark.parametrize(
    "make",
    [graph_models.llama, graph_models.bert, graph_models.gpt2, graph_models.phi3, graph_models.encoder_decoder,
     graph_models.vit, graph_models.mlp, of_opset_23, of_onnxruntime],
)  # fmt: skip
def test_a_model_computes_what_onnxruntime_does(make):
    proto, feeds = make()
    model, sites = loaded(proto)
    expected = graph_models.run(proto, feeds)
    name = model.graph.outputs[0].name
    torch_model = TorchModel(model, sites, name, CPU)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            y = torch_model(feeds, original)
        np.testing.assert_allclose(y.detach().numpy(), expected[name], rtol=1e-4, atol=1e-5)


def test_a_model_of_float16_is_computed_in_float32():
    b = graph_models.Builder()
    weights = [b.constant(b.random.standard_normal((16, 16)).astype(np.float16)) for _ in range(2)]
    half = b.op("Tanh", b.op("MatMul", "x", weights[0]))
    y = b.op("Cast", b.op("MatMul", half, weights[1]), to=TensorProto.FLOAT)
    proto = b.model({"x": (TensorProto.FLOAT16, [3, 16])}, [y])
    feeds = {"x": b.random.standard_normal((3, 16)).astype(np.float16)}
    model, sites = loaded(proto)
    computed = TorchModel(model, sites, y, CPU)(feeds, original)
    assert computed.dtype == torch.float32
    np.testing.assert_allclose(computed.numpy(), graph_models.run(proto, feeds)[y], rtol=0, atol=2e-2)


def test_an_operator_without_derivative_is_named():
    b = graph_models.Builder()
    x = b.linear("x", 8, 8)
    (y,) = [b.op("Det", x, name="determinant")]
    model, sites = loaded(b.model({"x": (1, [8, 8])}, [y]))
    with pytest.raises(UndifferentiableError, match="node 'determinant': is a Det, of which no derivative is known"):
        TorchModel(model, sites, y, CPU)


def test_an_output_that_is_there_before_the_last_weights_is_refused():
    proto, _ = graph_models.mlp()
    model, sites = loaded(proto)
    early = sites[0].node.outputs[0]
    model.graph.outputs.append(early)
    with pytest.raises(ModelError, match="comes before the last layers"):
        TorchModel(model, sites, early.name, CPU)


@pytest.mark.parametrize("name", [*FORMATS, "ternary"])
def test_a_tunable_weight_is_the_packed_one_before_and_after(name):
    torch.manual_seed(0)
    quantized = unpack(pack(rtn(torch.randn(20, 50), parse_format(name), None)))
    weight = TunableWeight(quantized, CPU)
    assert torch.equal(weight.matrix(stored=True), quantized.decode())
    torch.testing.assert_close(weight.matrix(stored=False), quantized.decode(), rtol=1e-6, atol=0)
    with torch.no_grad():
        for parameter in weight.parameters:
            parameter.add_(0.05 * torch.randn_like(parameter))
    learned = weight.quantized()
    torch.testing.assert_close(learned.decode(), weight.matrix(stored=True).detach(), rtol=1e-6, atol=0)
    assert not torch.equal(learned.decode(), quantized.decode())
    if weight.entries is not None:
        assert bool((learned.grid.entries.diff(dim=1) >= 0).all())
    if name.startswith(("nf4", "ternary")):  # their tables are fixed
        assert torch.equal(learned.grid.entries, quantized.grid.entries)
    assert torch.equal(unpack(pack(learned)).decode(), learned.decode())


def test_the_derivative_is_the_one_of_finite_differences():
    proto, feeds = graph_models.llama()
    model, sites = loaded(proto)
    logits = model.graph.outputs[0].name
    torch_model = TorchModel(model, sites, logits, CPU)
    expected = torch.from_numpy(graph_models.run(proto, feeds)[logits])
    torch.manual_seed(0)
    tunable = {
        site.weight: TunableWeight(rtn(site.weight.matrix(), parse_format("lut2g16"), None), CPU)
        for site in sites if site.role in ("value", "gate", "down")
    }  # fmt: skip
    assert len(tunable) == 6

    def loss():
        def matrix(site):
            return tunable[site.weight].matrix(stored=False) if site.weight in tunable else original(site)

        return divergence(torch_model(feeds, matrix), expected)

    for weight in tunable.values():
        for parameter in weight.parameters:
            (slope,) = torch.autograd.grad(loss(), [parameter])
            direction = slope / slope.norm()
            with torch.no_grad():
                parameter.add_(direction, alpha=2e-2)
                above = float(loss())
                parameter.add_(direction, alpha=-4e-2)
                below = float(loss())
                parameter.add_(direction, alpha=2e-2)
            assert (above - below) / 4e-2 == pytest.approx(float(slope.norm()), rel=2e-2)


def test_the_divergence_is_the_one_of_the_formula():
    torch.manual_seed(0)
    logits, expected = 3 * torch.randn(2, 200, 7), 3 * torch.randn(2, 200, 7)
    expected[0, 0, 0] = -torch.inf  # what has no chance adds nothing
    p, q = expected.double().softmax(-1), logits.double().softmax(-1)
    by_hand = sum(
        float(a) * np.log(float(a) / float(b)) for a, b in zip(p.flatten(), q.flatten(), strict=True) if a > 0
    )
    assert float(divergence(logits, expected)) == pytest.approx(by_hand / 400, rel=1e-5)
    logits.requires_grad_()
    plain = (p * torch.where(p > 0, p.log() - logits.double().log_softmax(-1), 0)).sum() / 400
    (slope,) = torch.autograd.grad(3 * divergence(logits, expected), [logits])
    torch.testing.assert_close(slope, torch.autograd.grad(3 * plain, [logits])[0], atol=1e-8, rtol=1e-4)


def examples(samples, teacher):
    return [Example(sample, partial(teacher, sample)) for sample in samples]


def test_tuning_comes_nearer_to_the_original_on_other_samples():
    proto, _ = graph_models.llama(vocabulary=40)
    model, sites = loaded(proto)
    logits = model.graph.outputs[0].name
    torch_model = TorchModel(model, sites, logits, CPU)
    random = np.random.default_rng(1)
    _, example = graph_models.llama()

    def sample():
        return {name: random.integers(0, 40, array.shape) if name.endswith("ids") and "position" not in name else array
                for name, array in example.items()}  # fmt: skip

    def teacher(feeds):
        return graph_models.run(proto, feeds)[logits]

    def weights(seed):
        torch.manual_seed(seed)
        return {site.weight: TunableWeight(rtn(site.weight.matrix(), parse_format("lut2g16"), None), CPU)
                for site in sites if site.kind == "linear" and site.role != "head"}  # fmt: skip

    samples, held_back, unseen = ([sample() for _ in range(count)] for count in (60, 6, 10))

    def far(tunable):
        def matrix(site):
            return tunable[site.weight].matrix(stored=True) if site.weight in tunable else original(site)

        with torch.no_grad():
            return sum(float(divergence(torch_model(each, matrix), torch.from_numpy(teacher(each)))) for each in unseen)

    tunable = weights(0)
    before = far(tunable)
    arguments = (lambda weight: weight.matrix(), *(examples(each, teacher) for each in (samples, held_back)), silent)
    distil(torch_model, tunable, *arguments, is_logits=True, rate=1e-2)
    assert far(tunable) < 0.7 * before
    again = weights(0)
    distil(torch_model, again, *arguments, is_logits=True, rate=1e-2)
    for weight, other in zip(tunable.values(), again.values(), strict=True):
        assert all(map(torch.equal, weight.parameters, other.parameters))


TUNED = {"weights": "lut2g16", "activations": "a32", "head": "float", "embedding": "float", "length": 16, "samples": 6}


def test_a_compile_that_tunes_says_what_it_reached_and_repeats_itself(tiny):
    reports = [
        qxcompiler.compile(tiny.model, "cpu-x86", tiny.folder / name, calibration=tiny.calibration, tune=40, **TUNED)
        for name in ("once", "again")
    ]
    once, again = ((tiny.folder / name / "model.onnx").read_bytes() for name in ("once", "again"))
    assert once == again  # it names its data by their digest
    said = reports[0].tuning
    assert (said.output, said.samples + said.held_back) == ("logits", 35)  # all that the text gives
    assert said.loss_after < said.loss_before
    assert said == reports[1].tuning
    plain = qxcompiler.compile(tiny.model, "cpu-x86", tiny.folder / "plain", calibration=tiny.calibration, **TUNED)
    assert plain.tuning is None
    assert [site.bytes for site in plain.sites] == [site.bytes for site in reports[0].sites]


def test_an_encoder_is_tuned_on_its_first_output(tmp_path):
    proto, feeds = graph_models.bert()
    onnx.save(proto, tmp_path / "model.onnx")
    random = np.random.default_rng(0)
    samples = [
        {name: random.integers(0, 20, array.shape) if name == "ids" else array for name, array in feeds.items()}
        for _ in range(40)
    ]
    report = qxcompiler.compile(
        tmp_path / "model.onnx", "cpu-x86", tmp_path / "out", calibration=samples, tune=24, weights="int3g16",
        embedding="float",
    )  # fmt: skip
    assert report.tuning.loss_after < report.tuning.loss_before < 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"quantizer": "rtn"}, "--tune: needs samples"),
        ({"weights": "mxfp4", "calibration": True}, "--tune: finds no weight whose scales can be learned"),
        ({"length": 600, "calibration": True}, "--tune: has one sample"),
    ],
)
def test_what_cannot_be_tuned_is_refused_at_once(tiny, monkeypatch, options, problem):
    given = TUNED | options
    if given.pop("calibration", False):
        given["calibration"] = tiny.calibration
    else:
        (tiny.folder / "tokenizer.json").unlink()  # with it, the model would write some
    with monkeypatch.context() as context, pytest.raises(QxcError, match=problem):
        context.setattr("qxcompiler.compiler.quantize_segmentwise", None)  # refused before
        qxcompiler.compile(tiny.model, "cpu-x86", tiny.folder / "out", tune=20, **given)
    assert not (tiny.folder / "out" / "model.onnx").exists()


def test_a_folder_is_not_tuned(tiny):
    with pytest.raises(QxcError, match="--tune: takes a single model"):
        qxcompiler.compile_folder(tiny.folder, "cpu-x86", tiny.folder / "out", calibration=tiny.calibration, tune=20)


def test_the_output_that_is_compared_holds_floats():
    b = graph_models.Builder()
    hidden = b.op("Tanh", b.linear("x", 8, 8))
    y = b.linear(hidden, 8, 5)
    best = b.op("ArgMax", y, axis=-1)
    proto = b.model({"x": (1, [3, 8])}, [best, y])
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    model, sites = loaded(proto)
    formats = {site.weight: parse_format("int3g32") for site in sites}
    assert Tuner(model, sites, formats, [{}, {}], CPU).output == y
    del model.graph.outputs[1]
    with pytest.raises(ModelError, match="has no output of floats among"):
        Tuner(model, sites, formats, [{}, {}], CPU)


def test_a_segment_that_serves_another_output_is_left_out():
    """The first linear layers lead to an output that is not compared."""
    b = graph_models.Builder()
    aside = b.linear(b.op("Tanh", b.linear("x", 8, 8)), 8, 8)
    y = b.linear(b.op("Tanh", b.linear(b.op("Relu", "x"), 8, 8)), 8, 8)
    proto = b.model({"x": (1, [3, 8])}, [aside, y])
    feeds = {"x": b.random.standard_normal((3, 8)).astype(np.float32)}
    model, sites = loaded(proto)
    computed = TorchModel(model, sites, y, CPU)(feeds, original)
    np.testing.assert_allclose(computed.numpy(), graph_models.run(proto, feeds)[y], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("broken", ["learned", "held back"])
def test_what_is_not_finite_is_no_step(broken):
    proto, feeds = graph_models.mlp()
    model, sites = loaded(proto)
    output = model.graph.outputs[0].name
    weights = {site.weight: TunableWeight(rtn(site.weight.matrix(), parse_format("int3g16"), None), CPU)
               for site in sites}  # fmt: skip
    (name,) = feeds
    bad = {name: np.full_like(feeds[name], np.nan)}
    samples, held_back = ([bad, feeds, bad], [feeds]) if broken == "learned" else ([feeds], [feeds, bad])

    def teacher(sample):
        return graph_models.run(proto, sample)[output]

    def run():
        return distil(TorchModel(model, sites, output, CPU), weights, lambda weight: weight.matrix(),
                      *(examples(each, teacher) for each in (samples, held_back)), silent,
                      is_logits=False)  # fmt: skip

    if broken == "learned":
        before, after = run()
        assert 0 < after < before
        assert all(bool(parameter.isfinite().all()) for weight in weights.values() for parameter in weight.parameters)
    else:
        with pytest.raises(ModelError, match="--tune: the quantized model is infinitely far"):
            run()
