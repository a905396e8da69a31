"""What a budget makes small, what it counts, what it chooses from, and what it says when it cannot be kept."""

from __future__ import annotations

import itertools
import json

import graph_models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import yaml
from conftest import named_as_published
from onnx import numpy_helper
from tiny_transformers import VOCABULARY

import qxcompiler
from qxcompiler.allocation import Question
from qxcompiler.allocation.candidates import candidates, of_other_bits
from qxcompiler.allocation.errors import measure_errors
from qxcompiler.allocation.size import write_size
from qxcompiler.calibration.walk import Calibration
from qxcompiler.cost import predict
from qxcompiler.errors import QxcError
from qxcompiler.formats import parse_format
from qxcompiler.graph import find_sites, load_model
from qxcompiler.graph.normal_form import normalize
from qxcompiler.options import Options, parse_size
from qxcompiler.quantizers import quantize_weights
from qxcompiler.report import Report
from qxcompiler.targets import find_target, load_target

CPU = torch.device("cpu")
FORMATS = [parse_format(name) for name in ("int2g16", "int4g16")]


def asked(proto, samples, token_weights=None, **options):
    model = ir.from_proto(proto)
    normalize(model)
    sites = find_sites(model)
    calibration = Calibration(sites, samples, CPU, token_weights=token_weights or {})
    options = Options.checked({"quantizer": "rtn"} | options)
    return Question(model, sites, load_target("cpu-x86"), options, calibration)


def rounded(weight, fmt, importance):
    grid = fmt.fit(weight, importance)
    return grid.decode(grid.encode(weight, slice(None)), slice(None))


class Layers:
    """A chain of layers computed in numpy: matrices [N, K] and the input of each."""

    def __init__(self):
        self.proto, self.feeds = graph_models.mlp((32, 48, 32, 16))
        arrays = [numpy_helper.to_array(each) for each in self.proto.graph.initializer]
        self.matrices = [torch.from_numpy(array.T.copy()) for array in arrays if array.ndim == 2]
        biases = [torch.from_numpy(array.copy()) for array in arrays if array.ndim == 1]
        x = torch.from_numpy(self.feeds["x"])
        self.inputs = []
        for matrix, bias in zip(self.matrices, biases, strict=True):
            self.inputs.append(x)
            x = (x @ matrix.T + bias).relu()


def errors_of(question):
    """By the order of the layers and the formats."""
    weights = [site.weight for site in question.sites]
    found = measure_errors(question, {(weight,): FORMATS for weight in weights})
    return [[found[weight][fmt] for fmt in FORMATS] for weight in weights]


@pytest.mark.parametrize("term", ["frobenius", "output", "curvature", "divergence"])
def test_errors_of_layers_are_what_their_formulas_say(term):
    layers = Layers()
    draws = np.random.default_rng(1)
    counts = [torch.from_numpy(draws.uniform(0, 2, 3).astype(np.float32)) for _ in layers.matrices]
    question = asked(layers.proto, [layers.feeds], error=term)
    question.calibration.token_weights.update(
        {site: [count] for site, count in zip(question.sites, counts, strict=True)}
    )
    found = errors_of(question)
    for W, X, count, errors in zip(layers.matrices, layers.inputs, counts, found, strict=True):
        used = count if term in ("curvature", "divergence") else torch.ones(3)
        for fmt, error in zip(FORMATS, errors, strict=True):
            dW = W - rounded(W, fmt, (used[:, None] * X.square()).sum(0) / used.sum())
            expected = {
                "frobenius": dW.square().sum(),
                "output": (X @ dW.T).square().sum(),
                "divergence": 0.5 * (count * (X @ dW.T).square().sum(1)).sum(),
                # the mean over all K N numbers of sum x² g², where a token's weight is the mean of g² over N
                "curvature": 0.5 * (count * X.square().mean(1)).sum() * dW.square().sum(),
            }
            assert error == pytest.approx(float(expected[term]), rel=1e-4)


def test_a_compensating_quantizer_is_tried_in_one_format_of_a_kind_and_scales_the_others():
    """GPTQ in every format is the reference: a share of what rounding loses lies near it."""
    proto, _ = graph_models.mlp((128, 48))
    draws = np.random.default_rng(0)
    mixed = draws.standard_normal((8, 128)) * draws.uniform(0.2, 4, 128)  # inputs of few directions: GPTQ gains much
    X = (draws.standard_normal((512, 8)) @ mixed + 2 * draws.standard_normal((512, 128))).astype(np.float32)
    question = asked(proto, [{"x": X}], error="output", quantizer="gptq")
    (site,) = question.sites
    names = ("int2g32", "int3g32", "lut3g32", "int4g32", "lut2g64th", "lut3g64th", "lut4g64th")
    formats = [parse_format(name) for name in names]
    found = measure_errors(question, {(site.weight,): formats})[site.weight]
    (stop,) = question.calibration.walk(question.model, "test")
    statistics = stop.statistics([site.weight])[site.weight]
    W = site.weight.matrix()

    def lost(fmt, quantizer):
        (made,) = quantize_weights([site.weight], fmt, quantizer, statistics, CPU)
        return float((torch.from_numpy(X) @ (W - made.decode()).T).square().sum())

    exact = {fmt: lost(fmt, "gptq") for fmt in formats}
    for fmt in formats:
        assert found[fmt] < 0.8 * lost(fmt, "rtn")
        assert found[fmt] == pytest.approx(exact[fmt], rel=0.15)
    for fmt in (formats[2], formats[5]):  # the middle ones
        assert found[fmt] == pytest.approx(exact[fmt], rel=1e-3)


def test_frobenius_needs_no_samples():
    layers = Layers()
    found = errors_of(asked(layers.proto, [], error="frobenius"))
    for W, errors in zip(layers.matrices, found, strict=True):
        expected = [float((W - rounded(W, fmt, torch.ones(W.shape[1]))).square().sum()) for fmt in FORMATS]
        assert errors == pytest.approx(expected, rel=1e-4)


def with_weights(proto, replaced):
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    for tensor in changed.graph.initializer:
        if tensor.name in replaced:
            tensor.CopyFrom(numpy_helper.from_array(replaced[tensor.name], tensor.name))
    return changed


@pytest.mark.parametrize("is_logits", [True, False])
def test_measured_errors_are_those_of_the_whole_model_with_a_group_quantized(is_logits):
    proto, feeds = graph_models.llama(tied=False, width=32, hidden=48)
    if is_logits:
        proto.graph.output[0].name = proto.graph.node[-1].output[0] = "logits"
    output = proto.graph.output[0].name
    draws = np.random.default_rng(0)
    samples = [feeds | {"ids": draws.integers(0, 40, (2, 5))} for _ in range(2)]
    question = asked(proto, samples, error="measured")
    gate, up = (next(site for site in question.sites if site.role == role) for role in ("gate", "up"))
    found = measure_errors(question, {(gate.weight, up.weight): FORMATS})
    statistics = {}
    for stop in question.calibration.walk(question.model, "test"):
        if gate.weight in stop.weights:
            statistics = stop.statistics([gate.weight, up.weight])
    for fmt in FORMATS:
        replaced = {
            site.weight.value.name: rounded(
                site.weight.matrix(), fmt, statistics[site.weight].importance
            ).T.numpy()  # stored [K, N]
            for site in (gate, up)
        }
        expected = 0.0
        for sample in samples:
            y, changed = (
                torch.from_numpy(graph_models.run(each, sample)[output]).double()
                for each in (proto, with_weights(proto, replaced))
            )
            if is_logits:
                p, q = y.log_softmax(-1), changed.log_softmax(-1)
                expected += float((p.exp() * (p - q)).sum(-1).mean()) / 2
            else:
                expected += float((changed - y).square().sum() / y.square().sum()) / 2
        assert found[gate.weight][fmt] == found[up.weight][fmt]  # of equal size
        assert found[gate.weight][fmt] + found[up.weight][fmt] == pytest.approx(expected, rel=1e-3)


def test_candidates_are_what_the_target_holds():
    names = {name: [fmt.name for fmt in candidates(load_target(name))] for name in ("cpu-x86", "npu-int8", "npu-mx")}
    tables = [f"lut{bits}{group}" for bits in (2, 3, 4) for group in ("g128s8", "g32s8", "g64ts8h")]
    assert names["cpu-x86"] == tables + [f"int{bits}{group}" for bits in (5, 6, 8) for group in ("g128s8", "g32s8")]
    assert names["npu-int8"] == [f"int{bits}g{group}" for bits in (2, 3, 4, 8) for group in (32, 128)]
    assert names["npu-mx"] == ["mxfp4", "mxfp6e2m3", "mxfp6e3m2", "mxfp8e4m3", "mxfp8e5m2", "mxint8"]


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("int3g32as8h", [f"int{bits}g32as8h" for bits in (2, 3, 4, 5, 6, 8)]),
        ("lut3g64t", ["lut2g64t", "lut3g64t", "lut4g64t"]),
        ("nf4g64", ["nf4g64"]),
        ("ternaryg64", ["ternaryg64"]),
        ("mxfp4", ["mxfp4"]),
    ],
)
def test_a_format_in_other_bits(spec, names):
    assert [fmt.name for fmt in of_other_bits(parse_format(spec), load_target("cpu-x86"))] == names


@pytest.mark.parametrize(
    ("text", "size"),
    [("60MB", 60_000_000), ("57.2 MiB", 59_978_547), ("1GB", 10**9), ("2GiB", 2 << 30), ("900kB", 900_000), ("7B", 7)],
)
def test_sizes_have_units(text, size):
    assert parse_size(text) == size
    assert Options.checked({"max_size": text}).max_size == size


@pytest.mark.parametrize(
    "text", ["60", "60mb", "60 M", "-1MB", "1e9B", "MB", "60MB.", "0B", "0.1B", "\u0661MB", "nan", ""]
)
def test_sizes_without_a_unit_are_refused(text):
    with pytest.raises(QxcError, match="option max_size: "):
        Options.checked({"max_size": text})


@pytest.mark.parametrize("size", [1, 999_999, 10**6, 61_234_567, 12_345_678_901])
def test_a_size_that_is_said_is_enough(size):
    assert size <= parse_size(write_size(size)) <= size * 1.01


def test_what_would_not_become_smaller_is_no_choice(tmp_path):
    """17 rows, or columns, are padded to 32: with codes of 8 bits they take as much as in float16."""
    b = graph_models.Builder()
    x, widths = "x", (64, 17, 64, 64, 64)
    for index, (k, n) in enumerate(itertools.pairwise(widths)):
        W = b.constant(b.random.standard_normal((k, n)).astype(np.float16))
        x = b.op("Relu", b.op("MatMul", x, W, name=f"layer{index}"))
    model = b.model({"x": (onnx.TensorProto.FLOAT16, ["n", 64])}, [x])
    options = {"quantizer": "rtn", "error": "frobenius", "verification": False, "weights": "int4g32s8"}
    report = qxcompiler.compile(model, "cpu-x86", tmp_path / "out", bits_per_weight=20, **options)
    offered = {group.sites[0]: [choice.format for choice in group.choices] for group in report.allocation.groups}
    every = [f"int{bits}g32s8" for bits in (2, 3, 4, 5, 6, 8)]
    assert offered == {"layer0": every[:-1], "layer1": every[:-1], "layer2": every}


@pytest.fixture
def decoder(tiny):
    """A language model wide enough that formats of few bits are small."""
    model, _ = graph_models.llama(vocabulary=VOCABULARY, width=64, hidden=128)
    onnx.save(named_as_published(model), tiny.model)
    return tiny


FAST = {"quantizer": "rtn", "samples": 4, "length": 16, "verification": False}


def files_of(folder):
    return sum(path.stat().st_size for path in folder.glob("model.onnx*"))


@pytest.mark.parametrize("activations", ["a16", "a8"])
def test_a_size_is_kept(decoder, tmp_path, activations):
    """Here, where the graph takes as much as the weights, what it may take at most is a good part of the limit."""
    options = FAST | {"weights": "int4g16", "activations": activations, "calibration": decoder.calibration}
    with pytest.raises(QxcError) as raised:
        qxcompiler.compile(decoder.model, "cpu-x86", tmp_path / "out", max_size="9000B", **options)
    least = parse_size(str(raised.value).split(" make ")[1].split(",")[0])
    bits = []
    for size in (least + 5_000, least + 20_000):
        out = tmp_path / f"{size}"
        report = qxcompiler.compile(decoder.model, "cpu-x86", out, max_size=size, **options)
        assert files_of(out) == report.bytes_after <= size
        (limit,) = report.allocation.limits
        assert limit.limit - 5_000 <= limit.used <= limit.limit
        bits.append(report.quantized_bits_per_weight)
    assert bits[0] < bits[1]


def test_a_size_that_cannot_be_kept_names_one_that_can(decoder, tmp_path):
    options = FAST | {"weights": "int4g16", "calibration": decoder.calibration}
    with pytest.raises(QxcError, match="--max-size 9000B: is too little: the smallest formats make") as raised:
        qxcompiler.compile(decoder.model, "cpu-x86", tmp_path / "out", max_size="9000B", **options)
    enough = str(raised.value).split(" make ")[1].split(",")[0]
    report = qxcompiler.compile(decoder.model, "cpu-x86", tmp_path / "out", max_size=enough, **options)
    assert {site.scheme for site in report.sites if site.considered} == {"int2g16/a16"}


def test_bits_that_cannot_be_kept_name_those_that_can(decoder, tmp_path):
    options = FAST | {"calibration": decoder.calibration}
    with pytest.raises(QxcError, match=r"the smallest formats take [0-9.]* bits: give more") as raised:
        qxcompiler.compile(decoder.model, "cpu-x86", tmp_path / "out", bits_per_weight=1.5, **options)
    enough = float(str(raised.value).split(" take ")[1].split(" ")[0])
    report = qxcompiler.compile(decoder.model, "cpu-x86", tmp_path / "out", bits_per_weight=enough, **options)
    assert {limit.option for limit in report.allocation.limits} == {f"--bpw {enough:g}"}


def test_two_limits_are_both_kept(decoder, tmp_path):
    options = FAST | {"weights": "int4g16", "calibration": decoder.calibration}
    report = qxcompiler.compile(
        decoder.model, "cpu-x86", tmp_path / "out", bits_per_weight=4.2, max_size="1MB", **options
    )
    bits, size = report.allocation.limits
    assert (bits.option, size.option) == ("--bpw 4.2", "--max-size 1.00MB")
    assert bits.used <= bits.limit
    assert bits.price > 0 == size.price
    with pytest.raises(QxcError, match=r"--max-size 9000B: .* beside --bpw 4.2: give more, or less to"):
        qxcompiler.compile(
            decoder.model, "cpu-x86", tmp_path / "other", bits_per_weight=4.2, max_size="9000B", **options
        )


def predicted_rate(folder, target):
    model = load_model(folder / "model.onnx")
    (decode, _) = predict(model, find_sites(model), load_target(target), context=512)
    return decode.tokens_per_second


def test_a_rate_is_kept(decoder, tmp_path):
    options = FAST | {"weights": "int4g32", "head": "float", "embedding": "float", "calibration": decoder.calibration}

    def compiled(rate):
        out = tmp_path / f"{rate:g}"
        return qxcompiler.compile(decoder.model, "npu-int8", out, min_tokens_per_second=rate, **options), out

    with pytest.raises(
        QxcError, match=r"--min-tokens-per-second 1e\+12: is too much: the fastest formats are"
    ) as raised:
        compiled(1e12)
    fastest = float(str(raised.value).split(" to give ")[1].split(":")[0])
    quick, out = compiled(fastest)
    assert {site.scheme for site in quick.sites if site.considered} == {"int2g32/a8"}
    # nodes are fused after the plan is made, which leaves fewer to start
    assert predicted_rate(out, "npu-int8") >= fastest
    slow, _ = compiled(1.0)
    assert {site.scheme for site in slow.sites if site.considered} == {"int8g32/a8"}
    (loose,) = slow.allocation.limits
    assert loose.price == 0
    seconds = [each.allocation.limits[0].used for each in (quick, slow)]
    (limit,) = quick.allocation.limits
    tokens, rest = 1, 1 / fastest - limit.limit
    between, _ = compiled(tokens / (rest + sum(seconds) / 2))
    (spent,) = between.allocation.limits
    assert seconds[0] <= spent.used <= spent.limit < seconds[1]
    assert spent.price > 0
    assert len({site.scheme for site in between.sites if site.considered}) > 1


def test_an_energy_is_kept(decoder, tmp_path):
    options = FAST | {"weights": "int4g32", "head": "float", "embedding": "float", "calibration": decoder.calibration}

    def compiled(joules, **others):
        out = tmp_path / f"{joules:g}"
        return qxcompiler.compile(decoder.model, "npu-int8", out, max_joules_per_token=joules, **options, **others)

    with pytest.raises(
        QxcError, match=r"--max-joules-per-token 1e-15: is too little: the thriftiest formats are predicted to take "
    ) as raised:
        compiled(1e-15)
    least = float(str(raised.value).split(" to take ")[1].split(":")[0])
    thrifty, loose = compiled(least), compiled(1.0)
    assert {site.scheme for site in thrifty.sites if site.considered} == {"int2g32/a8"}
    assert {site.scheme for site in loose.sites if site.considered} == {"int8g32/a8"}
    whole = [report.predicted[0].joules for report in (thrifty, loose)]
    assert whole[0] < least < whole[1]  # nodes are fused after the plan is made, which moves fewer values
    between = compiled(least + (whole[1] - whole[0]) / 2)
    (spent,) = between.allocation.limits
    assert spent.resource == "joules"
    assert spent.used <= spent.limit
    assert len({site.scheme for site in between.sites if site.considered}) > 1
    both = compiled(0.5, bits_per_weight=4.5)
    assert [limit.resource for limit in both.allocation.limits] == ["bytes", "joules"]


def test_an_energy_on_a_target_that_says_none(decoder, tmp_path):
    fields = yaml.safe_load(find_target("npu-int8").read_text())
    del fields["vector_unit"]["value_energy_pj"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields))
    with pytest.raises(QxcError, match="target npu-int8: does not say the energy of all that the model uses: add"):
        qxcompiler.compile(
            decoder.model, tmp_path / "mine.yaml", tmp_path / "out", max_joules_per_token=5,
            calibration=decoder.calibration, **FAST,
        )  # fmt: skip


def test_the_report_says_what_binds(decoder, tmp_path):
    options = FAST | {"weights": "int4g32", "calibration": decoder.calibration}
    report = qxcompiler.compile(decoder.model, "npu-int8", tmp_path / "out", **options)
    assert report.not_predicted is None
    assert [each.phase for each in report.predicted] == ["decode at context 512", "prefill of 512"]
    inspected = qxcompiler.inspect(tmp_path / "out" / "model.onnx", load_target("npu-int8")).predicted
    for ours, theirs in zip(report.predicted, inspected, strict=True):
        assert ours.seconds == pytest.approx(theirs.seconds)
        assert ours.bound_by == pytest.approx(theirs.bound_by)
        assert {item.scheme for item in ours.items} == {"int4g32/a8", "int8g128", "int8g128/a8"}


@pytest.mark.parametrize("given", [True, False])
def test_sizes_that_no_phase_tells_are_those_of_a_sample(tmp_path, given):
    proto, feeds = graph_models.vit(width=32)
    fixed = qxcompiler.compile(proto, "npu-int8", tmp_path / "fixed", weights="int4g32", quantizer="rtn")
    for dim, name in zip(
        proto.graph.input[0].type.tensor_type.shape.dim[1:], ("channels", "height", "width"), strict=True
    ):
        dim.dim_param = name
    samples = {"calibration": [feeds]} if given else {}
    free = qxcompiler.compile(proto, "npu-int8", tmp_path / "free", weights="int4g32", quantizer="rtn", **samples)
    assert free.not_predicted is None
    (free_pass,), (fixed_pass,) = free.predicted, fixed.predicted
    macs = [sum(item.macs for item in each.items) for each in (free_pass, fixed_pass)]
    assert macs[0] == macs[1] > 0


def test_a_target_that_says_nothing_of_its_hardware_compiles(decoder, tmp_path):
    fields = yaml.safe_load(find_target("npu-int8").read_text())
    del fields["memory"], fields["memory_mode"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields))
    options = FAST | {"weights": "int4g32", "calibration": decoder.calibration}
    report = qxcompiler.compile(decoder.model, tmp_path / "mine.yaml", tmp_path / "out", **options)
    assert not report.predicted
    assert "has no section `memory`" in report.not_predicted


def test_each_target_has_a_plan_of_its_own(decoder, tmp_path):
    """At the same share between its slowest rate and its fastest, no target would take another's plan."""
    options = FAST | {"activations": "a8", "head": "float", "embedding": "float", "calibration": decoder.calibration}
    targets = ("cpu-x86", "npu-int8", "npu-lut")
    accounts = {}
    for target in targets:
        slow = qxcompiler.compile(
            decoder.model, target, tmp_path / f"{target}-slow", min_tokens_per_second=1, **options
        )
        choices = [group.choices for group in slow.allocation.groups]
        ends = [sum(end(choice.costs["seconds"] for choice in each) for each in choices) for end in (min, max)]
        (limit,) = slow.allocation.limits
        rest = 1 - limit.limit  # of a second, at one token a second
        rate = 1 / (rest + ends[0] + 0.3 * (ends[1] - ends[0]))
        report = qxcompiler.compile(decoder.model, target, tmp_path / target, min_tokens_per_second=rate, **options)
        accounts[target] = report.allocation
    plans = {target: tuple(group.chosen for group in account.groups) for target, account in accounts.items()}
    assert len(set(plans.values())) == len(targets)
    for account in accounts.values():
        (limit,) = account.limits
        offered = [{choice.format: choice for choice in group.choices} for group in account.groups]
        for other in targets:
            found = [by_name.get(name) for by_name, name in zip(offered, plans[other], strict=True)]
            if None in found:  # a format that this target lacks, or that is not worth comparing there
                continue
            assert sum(choice.costs["seconds"] for choice in found) > limit.limit * (1 + 1e-9) or sum(
                choice.error for choice in found
            ) >= account.expected_error * (1 - 1e-4)


@pytest.mark.parametrize("host", [False, True])
def test_operators_that_a_target_lacks(decoder, tmp_path, host):
    fields = yaml.safe_load(find_target("npu-int8").read_text())
    fields["operators"] = {"lacking": ["Sigmoid", "Loop"]}
    if host:
        speeds = {"macs_per_second": 1e9, "bandwidth_bytes_per_second": 1e9, "overhead_seconds": 1e-5}
        fields["operators"]["host"] = speeds
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields))
    options = FAST | {"weights": "int4g32", "calibration": decoder.calibration}
    if host:
        report = qxcompiler.compile(decoder.model, tmp_path / "mine.yaml", tmp_path / "out", **options)
        assert "the target's host runs what it lacks: Sigmoid (2)" in report.warnings
    else:
        with pytest.raises(QxcError, match=r"lacks operators of the model: Sigmoid \(2\): describe a host"):
            qxcompiler.compile(decoder.model, tmp_path / "mine.yaml", tmp_path / "out", **options)


def test_a_rate_on_a_target_that_says_nothing_of_its_hardware(decoder, tmp_path):
    fields = yaml.safe_load(find_target("npu-int8").read_text())
    del fields["memory"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields))
    with pytest.raises(QxcError, match="memory"):
        qxcompiler.compile(
            decoder.model, tmp_path / "mine.yaml", tmp_path / "out", min_tokens_per_second=5,
            calibration=decoder.calibration, **FAST,
        )  # fmt: skip


@pytest.mark.parametrize("term", ["divergence", "output", "frobenius", "curvature", "attention", "measured"])
def test_every_term_chooses_within_the_budget(decoder, tmp_path, term):
    report = qxcompiler.compile(
        decoder.model,
        "cpu-x86",
        tmp_path / "out",
        calibration=decoder.calibration,
        bits_per_weight=4.6,
        error=term,
        **FAST,
    )
    account = report.allocation
    assert account.term == term
    (limit,) = account.limits
    assert 0.9 * limit.limit < limit.used <= limit.limit
    assert account.least_error <= account.expected_error * (1 + 1e-6)
    chosen = [site for site in report.sites if site.considered]
    assert sorted(name for group in account.groups for name in group.sites) == sorted(site.name for site in chosen)
    for group in account.groups:
        assert {site.scheme for site in chosen if site.name in group.sites} == {f"{group.chosen}/a16"}
        for choice in group.choices:
            errors = [site.considered[choice.format] for site in chosen if site.name in group.sites]
            assert choice.error == pytest.approx(sum(errors))
    sizes = sum(site.bytes for site in chosen)
    assert sizes == limit.used == account.used("bytes")
    assert Report.model_validate(json.loads((tmp_path / "out" / "report.json").read_text())) == report


def test_a_budget_without_samples(tmp_path):
    proto, _ = graph_models.mlp((64, 128, 64, 64))
    with pytest.raises(
        QxcError, match="--max-size: needs samples: give --calibration FILE, or choose --error frobenius"
    ):
        qxcompiler.compile(proto, "cpu-x86", tmp_path / "out", max_size="70kB", quantizer="rtn")
    proto, _ = graph_models.llama(width=64, hidden=128)
    report = qxcompiler.compile(
        proto, "cpu-x86", tmp_path / "out", bits_per_weight=5, quantizer="rtn", error="frobenius"
    )
    (limit,) = report.allocation.limits
    assert report.samples == 0
    assert 0.8 * limit.limit < limit.used <= limit.limit
    assert {len(group.sites) for group in report.allocation.groups} == {1, 2, 3}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"error": "output"}, "--error output: has no budget: give --allocation budget, or one of --bpw, --max-size"),
        ({"error": "guess", "bits_per_weight": 3}, "option error: "),
        ({"allocation": "uniform", "max_size": "60MB"}, "--allocation uniform: keeps no budget: .* or --max-size"),
        ({"error": "output", "plan": "plan.yaml"}, "says every site's scheme already: leave out --error"),
        (
            {"max_size": "60MB", "keep": "a", "plan": "plan.yaml"},
            "says every .* already: leave out --keep and --max-size",
        ),
        ({"max_size": 0}, "option max_size: "),
        ({"min_tokens_per_second": float("inf")}, "option min_tokens_per_second: "),
        ({"max_joules_per_token": 0}, "option max_joules_per_token: "),
    ],
)
def test_options_that_make_no_sense(tiny, tmp_path, options, problem):
    with pytest.raises(QxcError, match=problem):
        qxcompiler.compile(tiny.model, "cpu-x86", tmp_path / "out", calibration=tiny.calibration, **(FAST | options))


def test_the_command_line_takes_a_size_and_a_term(decoder, tmp_path, qxc):
    out = tmp_path / "out"
    given = ["--calibration", decoder.calibration, "--samples", 4, "--length", 16, "--weights", "int4g16"]
    ran = qxc(
        "compile", decoder.model, "--target", "cpu-x86", *given, "--max-size", "0.35MB", "--error", "output", "-o", out
    )
    assert ran.returncode == 0, ran.stderr
    again = qxc("compile", "--config", out / "compile.yaml", "-o", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again" / "plan.yaml").read_text() == (out / "plan.yaml").read_text()
    wrong = qxc("compile", decoder.model, "--target", "cpu-x86", *given, "--max-size", "0.35", "-o", out)
    assert wrong.returncode == 2
    assert "write a number and one of B, kB, MB, GB, KiB, MiB, GiB, such as 60MB" in wrong.stderr


def test_a_folder_has_no_size(tmp_path):
    proto, _ = graph_models.mlp((64, 64))
    onnx.save(proto, tmp_path / "a.onnx")
    with pytest.raises(QxcError, match="--max-size: is a limit for a single model"):
        qxcompiler.compile_folder(tmp_path, "cpu-x86", tmp_path / "out", max_size="1MB")
