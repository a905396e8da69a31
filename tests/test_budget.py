"""Bits where they count: how much tokens weigh, what formats cost, and what is chosen."""

from __future__ import annotations

import json

import graph_models
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import yaml
from conftest import named_as_published
from hypothesis import given
from hypothesis import strategies as st
from tiny_transformers import VOCABULARY

import qxcompiler
from qxcompiler.calibration.statistics import InputStatistics
from qxcompiler.calibration.walk import Calibration
from qxcompiler.derivatives import TorchModel, UndifferentiableError, attention_weights, token_weights
from qxcompiler.errors import QxcError
from qxcompiler.evaluation.language import kl_divergence
from qxcompiler.graph import find_sites
from qxcompiler.graph.normal_form import normalize
from qxcompiler.progress import silent

CPU = torch.device("cpu")


def loaded(proto, output=None):
    model = ir.from_proto(proto)
    normalize(model)
    sites = find_sites(model)
    return model, sites, TorchModel(model, sites, output or model.graph.outputs[0].name, CPU)


def head_alone(width=6, vocabulary=5):
    """A model whose only layer gives the logits."""
    b = graph_models.Builder()
    product = b.op("MatMul", "x", b.weight(width, vocabulary))
    (logits,) = [b.op("Identity", product)]
    proto = b.model({"x": (1, ["tokens", width])}, [logits])
    proto.graph.node[-1].output[0] = proto.graph.output[0].name = "logits"
    return proto


class TestTokenWeights:
    def test_of_logits_they_are_the_fisher_matrix_of_a_softmax(self):
        """Its diagonal is p(1 - p)."""
        proto = head_alone()
        _, sites, torch_model = loaded(proto)
        x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
        drawn = token_weights(torch_model, [{"x": x}] * 1500, 0, silent)[sites[0]]
        p = torch.from_numpy(graph_models.run(proto, {"x": x})["logits"]).softmax(-1)
        expected = (p * (1 - p)).mean(-1)
        torch.testing.assert_close(torch.stack(drawn).sum(0) * 4, expected, rtol=0.08, atol=0)

    def test_of_another_output_they_are_the_squares_of_its_derivatives(self):
        proto, feeds = graph_models.mlp()
        _, sites, torch_model = loaded(proto)
        drawn = token_weights(torch_model, [feeds] * 600, 0, silent)
        last, before = sites[-1], sites[-2]
        torch.testing.assert_close(torch.stack(drawn[last]).sum(0) * 3, torch.ones(3))
        hidden = {}

        def observe(site, Y):
            if site is before:
                hidden["Y"] = Y = Y.detach().requires_grad_()
            return Y

        y = torch_model(feeds, lambda site: site.weight.matrix(), observe)
        slopes = [torch.autograd.grad(each, hidden["Y"], retain_graph=True)[0] for each in y.reshape(-1)]
        expected = torch.stack(slopes).square().sum(0).mean(-1)
        torch.testing.assert_close(torch.stack(drawn[before]).sum(0) * 3, expected, rtol=0.2, atol=1e-6)

    def test_they_tell_the_divergence_that_small_errors_cause(self):
        """Half the sum of weight times |dY|², whichever layer errs."""
        proto, feeds = graph_models.llama(tied=False)
        proto.graph.output[0].name = proto.graph.node[-1].output[0] = "logits"
        _, sites, torch_model = loaded(proto)
        drawn = token_weights(torch_model, [feeds] * 100, 0, silent)
        linear = [site for site in sites if site.kind == "linear"]
        assert set(drawn) == set(linear)
        generator = torch.Generator().manual_seed(0)

        def computed(erring=None):
            def observe(site, Y):
                if site is not erring:
                    return Y
                dY = 1e-3 * torch.randn(Y.shape, generator=generator)
                expected.append(0.5 * float((totals[site] * dY.square().sum(site.activation_axis).reshape(-1)).sum()))
                return Y + dY

            with torch.no_grad():
                y = torch_model(feeds, lambda each: each.weight.matrix(), observe)
            return y.double().log_softmax(-1)

        totals = {site: torch.stack(each).sum(0) for site, each in drawn.items()}
        exact = computed()
        for site in linear:
            expected = []
            measured = [float(kl_divergence(exact, computed(site)).mean()) for _ in range(40)]
            assert sum(measured) == pytest.approx(sum(expected), rel=0.3), site.role

    @pytest.mark.parametrize("family", [graph_models.llama, graph_models.bert, graph_models.vit])
    def test_of_queries_and_keys_they_tell_how_far_attention_moves(self, family):
        """Half the sum of weight times |dY|² is the divergence of a row, the mean over all of them."""
        proto, feeds = family()
        _, sites, torch_model = loaded(proto)
        drawn = attention_weights(torch_model, [feeds] * 80, 0, silent)
        attending = [site for site in sites if site.role in ("query", "key")]
        assert set(drawn) == set(attending) and len(attending) == 4
        generator = torch.Generator().manual_seed(0)

        def rows(erring=None):
            def observe(site, Y):
                if site is not erring:
                    return Y
                dY = 3e-2 * torch.randn(Y.shape, generator=generator)
                expected.append(0.5 * float((totals[site] * dY.square().sum(site.activation_axis).reshape(-1)).sum()))
                return Y + dY

            def attend(p):
                found.append((p.double() + 1e-30).log().log_softmax(-1))
                return p

            found = []
            with torch.no_grad():
                torch_model(feeds, lambda each: each.weight.matrix(), observe, attend)
            return found

        totals = {site: torch.stack(each).sum(0) for site, each in drawn.items()}
        exact = rows()
        for site in attending:
            expected, layer = [], attending.index(site) // 2
            measured = [float(kl_divergence(exact[layer], rows(site)[layer]).mean()) for _ in range(20)]
            assert sum(measured) == pytest.approx(sum(expected), rel=0.3), site.name

    def test_a_model_without_attention_has_none_to_move(self):
        proto, feeds = graph_models.mlp()
        with pytest.raises(UndifferentiableError, match="no attention whose rows are found"):
            attention_weights(loaded(proto)[2], [feeds], 0, silent)

    def test_a_sample_without_a_finite_derivative_weighs_nothing(self):
        _, sites, torch_model = loaded(head_alone())
        good = {"x": np.ones((2, 6), np.float32)}
        drawn = token_weights(torch_model, [good, {"x": np.full((2, 6), np.nan, np.float32)}], 0, silent)
        assert float(drawn[sites[0]][1].sum()) == 0 < float(drawn[sites[0]][0].sum())


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 99))
def test_a_token_counts_as_often_as_its_weight_says(counts, seed):
    X = torch.randn(len(counts), 5, generator=torch.Generator().manual_seed(seed))
    weighted, repeated = (InputStatistics.empty(5, CPU) for _ in range(2))
    middle = len(counts) // 2
    for part in (slice(0, middle), slice(middle, None)):
        weighted.add(X[part], torch.tensor(counts, dtype=torch.float32)[part])
    repeated.add(X.repeat_interleave(torch.tensor(counts), 0))
    assert weighted.tokens == repeated.tokens
    torch.testing.assert_close(weighted.second_moment, repeated.second_moment, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weighted.mean, repeated.mean, rtol=1e-4, atol=1e-6)


def test_a_walk_weighs_the_tokens_of_each_layer_apart():
    proto, feeds = graph_models.llama()
    model, sites, _ = loaded(proto)
    query, key = (next(site for site in sites if site.role == role) for role in ("query", "key"))
    weights = {query: [torch.rand(10)], key: [torch.rand(10)]}
    walk = Calibration(sites, [feeds], CPU, token_weights=weights).walk(model, "test")
    plain = Calibration(sites, [feeds], CPU).walk(model, "test")
    stop, plain_stop = next(walk), next(plain)
    found = stop.statistics([query.weight, key.weight])
    unweighted = plain_stop.statistics([query.weight, key.weight])
    assert unweighted[query.weight] is unweighted[key.weight]
    for site in (query, key):
        assert found[site.weight].tokens == pytest.approx(float(weights[site][0].sum()))
    assert not torch.allclose(found[query.weight].second_moment, found[key.weight].second_moment)


@pytest.fixture
def decoder(tiny):
    """A language model wide enough that formats of few bits are small."""
    model, _ = graph_models.llama(vocabulary=VOCABULARY, width=64, hidden=128)
    onnx.save(named_as_published(model), tiny.model)
    return tiny


BUDGET = {"weights": "int3g16", "quantizer": "gptq", "samples": 6, "length": 32, "head": "float", "embedding": "float"}


def test_a_budget_is_spent_where_it_helps(decoder, tmp_path):
    report = qxcompiler.compile(
        decoder.model, "cpu-x86", tmp_path / "out", calibration=decoder.calibration, bits_per_weight=4.6, **BUDGET
    )
    assert report.quantized_bits_per_weight <= 4.6
    chosen = [site for site in report.sites if site.considered]
    assert {site.role for site in chosen} >= {"query", "key", "value", "attention_output", "gate", "up", "down"}
    assert len({site.scheme for site in chosen}) > 1
    for site in chosen:
        errors = list(site.considered.values())
        assert list(site.considered) == [f"int{bits}g16" for bits in (2, 3, 4, 5, 6, 8)]
        assert errors[0] > errors[2] > errors[-1] > 0
    for block in (0, 1):
        for roles in ({"query", "key", "value"}, {"gate", "up"}):
            assert len({site.scheme for site in chosen if site.block == block and site.role in roles}) == 1
    # a plan that any uniform format within the budget would give costs more
    expected = sum(site.considered[site.scheme.split("/")[0]] for site in chosen)
    assert expected < sum(site.considered["int3g16"] for site in chosen)
    plan = yaml.safe_load((tmp_path / "out" / "plan.yaml").read_text())
    again = qxcompiler.compile(
        decoder.model, "cpu-x86", tmp_path / "again", calibration=decoder.calibration, bits_per_weight=4.6, **BUDGET
    )
    assert yaml.safe_load((tmp_path / "again" / "plan.yaml").read_text()) == plan
    assert [site.considered for site in again.sites] == [site.considered for site in report.sites]


@pytest.mark.parametrize("weights", ["int4g16", None])
def test_a_budget_without_limits_is_what_one_format_takes(decoder, tmp_path, weights):
    def compiled(name, **options):
        return qxcompiler.compile(
            decoder.model, "cpu-x86", tmp_path / name, calibration=decoder.calibration, **(BUDGET | options)
        )

    uniform = compiled("uniform", weights=weights, allocation="uniform")
    mixed = compiled("mixed", weights=weights, allocation="budget")
    assert mixed.quantized_bits_per_weight <= uniform.quantized_bits_per_weight
    assert all(limit.used <= limit.limit for limit in mixed.allocation.limits)
    chosen = [site for site in mixed.sites if site.considered]
    (everywhere,) = {site.scheme.split("/")[0] for site in uniform.sites if site.name in {each.name for each in chosen}}
    assert len({site.scheme for site in chosen}) > 1
    expected = sum(site.considered[site.scheme.split("/")[0]] for site in chosen)
    assert expected < sum(site.considered[everywhere] for site in chosen)
    assert [limit.resource for limit in mixed.allocation.limits] == ["bytes", "seconds"]


def test_without_weights_the_target_chooses_for_every_layer(decoder, tmp_path, qxc):
    def compiled(name, *options):
        given = ("--samples", 4, "--length", 8, "--no-verify", "--json", *options)
        said = qxc("compile", decoder.model, "--target", "cpu-x86", "-o", tmp_path / name, *given).stdout
        return json.loads(said)

    calibrated = ("--calibration", decoder.calibration)
    report = compiled("chosen", *calibrated)
    assert [limit["resource"] for limit in report["allocation"]["limits"]] == ["bytes", "seconds"]
    assert compiled("named", *calibrated, "--weights", "int4g16")["allocation"] is None
    assert compiled("nearest", *calibrated, "--quantizer", "rtn")["allocation"] is None


def test_where_there_is_no_derivative_the_default_is_one_format_and_says_so(tmp_path):
    b = graph_models.Builder()
    x = b.op("Erf", b.linear("x", 64, 64))
    y = b.linear(b.op("Det", b.op("Reshape", x, b.ints(-1, 64, 1, 1)), name="determinant"), 64, 64)
    feeds = {"x": b.random.standard_normal((4, 64)).astype(np.float32)}
    model = b.model({"x": (1, [4, 64])}, [y])
    report = qxcompiler.compile(model, "cpu-x86", tmp_path / "out", calibration=[feeds] * 2)
    assert report.allocation is None
    (said,) = [warning for warning in report.warnings if "one format for all linear layers" in warning]
    assert "node 'determinant' is a Det, of which no derivative is known" in said
    chosen = qxcompiler.compile(model, "cpu-x86", tmp_path / "chosen", calibration=[feeds] * 2, error="output")
    assert chosen.allocation is not None
    with pytest.raises(QxcError, match="is a Det"):
        qxcompiler.compile(model, "cpu-x86", tmp_path / "limited", calibration=[feeds] * 2, bits_per_weight=4)


def test_a_budget_without_limits_or_choice_is_one_format(tiny, tmp_path):
    report = qxcompiler.compile(
        tiny.model,
        "cpu-x86",
        tmp_path / "out",
        calibration=tiny.calibration,
        **(BUDGET | {"weights": "mxfp4", "allocation": "budget"}),
    )
    assert report.allocation is None
    assert {site.scheme.split("/")[0] for site in report.sites if site.role == "query"} == {"mxfp4"}


def test_an_mx_target_mixes_microscaling_formats(decoder, tmp_path):
    options = BUDGET | {"weights": None, "quantizer": "rtn"}
    report = qxcompiler.compile(
        decoder.model, "npu-mx", tmp_path / "out", calibration=decoder.calibration, bits_per_weight=5.5, **options
    )
    assert report.quantized_bits_per_weight <= 5.5
    chosen = [site for site in report.sites if site.considered]
    assert {site.scheme for site in chosen} >= {"mxfp4/a8", "mxfp6e2m3/a8"}
    for site in chosen:
        errors = site.considered
        assert list(errors) == ["mxfp4", "mxfp6e2m3", "mxfp6e3m2", "mxfp8e4m3", "mxfp8e5m2", "mxint8"]
        assert errors["mxfp4"] > errors["mxfp6e3m2"] > errors["mxfp6e2m3"] > errors["mxint8"] > 0


def test_guided_rounding_differs_from_plain(decoder, tmp_path):
    for name in ("guided", "gptq"):
        options = BUDGET | {"quantizer": name}
        report = qxcompiler.compile(
            decoder.model, "cpu-x86", tmp_path / name, calibration=decoder.calibration, **options
        )
        assert {site.quantizer for site in report.sites if site.role == "query"} == {name}
    data = [next((tmp_path / name).glob("*.data")).read_bytes() for name in ("guided", "gptq")]
    assert data[0] != data[1]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"bits_per_weight": 1.5}, r"--bpw 1.5: is too little: the smallest formats take \d"),
        ({"bits_per_weight": 3, "weights": "mxfp4"}, "--bpw 3: has nothing to choose: the target cpu-x86 holds mxfp4"),
        ({"bits_per_weight": 3, "allocation": "uniform"}, "--allocation uniform: keeps no budget"),
        ({"bits_per_weight": 3, "plan": "plan.yaml"}, "says every site's scheme already: leave out .* and --bpw"),
        ({"bits_per_weight": -1}, "option bits_per_weight: "),
        ({"bits_per_weight": float("nan")}, "option bits_per_weight: "),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(tiny, tmp_path, options, problem):
    with pytest.raises(QxcError, match=problem):
        qxcompiler.compile(tiny.model, "cpu-x86", tmp_path / "out", calibration=tiny.calibration, **(BUDGET | options))
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_a_budget_needs_samples(tmp_path):
    proto, _ = graph_models.mlp((64, 64, 64))
    with pytest.raises(QxcError, match="--bpw: needs samples: give --calibration FILE"):
        qxcompiler.compile(proto, "cpu-x86", tmp_path / "out", bits_per_weight=3, quantizer="rtn")


def test_the_command_line_takes_a_budget(decoder, tmp_path, qxc):
    out = tmp_path / "out"
    options = ["--weights", "int3g16", "--samples", 4, "--length", 32, "--head", "float", "--embedding", "float"]
    text = ("--calibration", decoder.calibration)
    ran = qxc("compile", decoder.model, "--target", "cpu-x86", *text, *options, "--bpw", 4, "-o", out)
    assert ran.returncode == 0, ran.stderr
    assert yaml.safe_load((out / "compile.yaml").read_text())["bits_per_weight"] == 4
