"""The smallest model whose perplexity is near enough to the original's."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass

import graph_models
import onnx
import pytest
from conftest import named_as_published
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import numpy_helper

import qxcompiler
from qxcompiler.allocation.tightening import tighten
from qxcompiler.errors import QxcError
from qxcompiler.evaluation import evaluate
from qxcompiler.evaluation.writing import write_texts
from qxcompiler.progress import silent

FAST = {"quantizer": "rtn", "samples": 8, "length": 24, "weights": "int4g16", "head": "float", "embedding": "float"}


@dataclass
class Plan:
    """Stands for a plan: what it is expected to lose, and what it takes."""

    expected_error: float
    size: float

    @property
    def account(self):
        return self

    def used(self, resource):
        assert resource == "bytes"
        return self.size


def plan_of(error):
    """A bit less is four times the error."""
    return Plan(error, 1000 * (10 - 0.5 * math.log2(error)))


class Front:
    """All plans of some bits, of which what is measured is a function of what is expected."""

    def __init__(self, measured, least, most):
        self.measured, self.least, self.most = measured, least, most
        self.losses = {}

    def within(self, error):
        return plan_of(min(max(error, self.least), self.most))

    def measure(self, plan):
        self.losses[plan.expected_error] = self.measured(plan.expected_error)
        return self.losses[plan.expected_error]


@given(
    factor=st.floats(0.2, 5),
    power=st.floats(0.7, 1.3),
    allowed=st.floats(0.005, 1),
    first=st.floats(0.01, 1),
    noise=st.lists(st.floats(0.9, 1.1), min_size=6, max_size=6),
)
@example(factor=4.0, power=0.701171875, allowed=0.005859375, first=1.0, noise=[1.0] * 6)
def test_what_is_kept_is_allowed_and_little_smaller_would_not_be(factor, power, allowed, first, noise):
    draws = iter(noise)
    front = Front(lambda error: factor * error**power * next(draws), 1e-6, 10)
    kept = tighten(plan_of(first), allowed, front.within, front.measure)
    assert kept is not None
    assert len(front.losses) <= 6
    assert front.losses[kept.expected_error] <= allowed
    assert 0.3 * allowed <= front.losses[kept.expected_error] or len(front.losses) == 6
    assert kept.size == min(plan_of(error).size for error, loss in front.losses.items() if loss <= allowed)


def test_plans_that_lose_nothing_get_smaller_until_there_is_no_smaller_one():
    front = Front(lambda error: -0.001, 0.001, 0.5)
    kept = tighten(plan_of(0.1), 0.01, front.within, front.measure)
    assert kept.expected_error == 0.5
    assert list(front.losses) == [0.1, 0.4, 0.5]


def test_what_loses_least_is_tried_before_nothing_is_found():
    front = Front(lambda error: 1.0 if error > 1e-25 else 0.01, 1e-30, 5.0)
    assert tighten(plan_of(1.0), 0.02, front.within, front.measure).expected_error == 1e-30
    assert len(front.losses) == 6


def test_a_limit_that_the_most_precise_plan_breaks():
    front = Front(lambda error: 2 * error, 0.1, 0.5)
    assert tighten(plan_of(0.3), 0.1, front.within, front.measure) is None
    assert list(front.losses) == [0.3, 0.1]


@pytest.fixture
def sure(tiny):
    """A language model whose predictions are anything but uniform, on text that it wrote itself."""
    proto, _ = graph_models.llama(tied=False, width=64, hidden=96, vocabulary=64)
    proto = named_as_published(proto)
    head = next(node for node in proto.graph.node if "logits" in node.output).input[1]
    for tensor in proto.graph.initializer:
        if tensor.name == head:
            tensor.CopyFrom(numpy_helper.from_array(20 * numpy_helper.to_array(tensor), head))
    onnx.save(proto, tiny.model)
    texts = write_texts(tiny.model, texts=64, length=24, seed=0, track=silent)
    for name, part in (("calibration", texts[:48]), ("evaluation", texts[48:])):
        path = tiny.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
        setattr(tiny, name, path)
    return tiny


def test_a_limit_is_kept_by_a_smaller_model_the_more_it_allows(sure, tmp_path):
    reports = []
    for share in ("4%", 0.4):
        out = tmp_path / str(share)
        options = FAST | {"max_perplexity_increase": share, "calibration": sure.calibration}
        reports.append(qxcompiler.compile(sure.model, "cpu-x86", out, **options))
        limit = reports[-1].perplexity_limit
        kept = limit.measured[limit.kept]
        assert limit.samples == 16
        assert kept.increase <= limit.allowed
        allowed = [each for each in limit.measured if each.increase <= limit.allowed]
        assert kept.bits_per_weight == min(each.bits_per_weight for each in allowed)
        assert reports[-1].allocation.expected_error == kept.expected_error
        assert json.loads((out / "report.json").read_text())["perplexity_limit"]["kept"] == limit.kept
        assert not [path for path in out.iterdir() if path.is_dir()]
        found = evaluate(out / "model.onnx", sure.evaluation, length=24, reference=sure.model)
        assert found.perplexity / found.reference_perplexity < 1 + 2 * limit.allowed  # on text not seen
    assert reports[1].bytes_after < reports[0].bytes_after


def test_what_cannot_be_kept_is_said_with_what_was_measured(sure, tmp_path):
    options = FAST | {"max_perplexity_increase": 0.001, "calibration": sure.calibration, "bits_per_weight": 3.6}
    problem = r"--max-perplexity-increase 0\.1%: cannot be kept: 3\.\d{3} bits a weight cost \d+\.\d\d%: "
    with pytest.raises(QxcError, match=problem):
        qxcompiler.compile(sure.model, "cpu-x86", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_command_line_takes_a_share(sure, tmp_path, qxc):
    out = tmp_path / "out"
    given = ["--calibration", sure.calibration, "--samples", 8, "--length", 24, "--weights", "int4g16"]
    ran = qxc(
        "compile", sure.model, "--target", "cpu-x86", *given, "--quantizer", "rtn", "--max-perplexity-increase", "25%",
        "-o", out,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"perplexity +[+-]\d+\.\d\d% on 16 samples held back, where 25\.00% is allowed", ran.stdout)
    again = qxc("compile", "--config", out / "compile.yaml", "-o", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (out / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_perplexity_increase": "5"}, "option max_perplexity_increase: .*write a number and %, such as 5%"),
        ({"max_perplexity_increase": 0}, "option max_perplexity_increase: "),
        ({"allocation": "uniform"}, "--allocation uniform: keeps no budget"),
        ({"calibration": None, "error": "frobenius"}, "--max-perplexity-increase: needs samples: give --calibration"),
    ],
)
def test_options_that_make_no_sense(tiny, tmp_path, options, problem):
    given = FAST | {"max_perplexity_increase": 0.1, "calibration": tiny.calibration} | options
    with pytest.raises(QxcError, match=problem):
        qxcompiler.compile(onnx.load(tiny.model), "cpu-x86", tmp_path / "out", **given)


def test_an_encoder_has_no_perplexity(tmp_path):
    proto, feeds = graph_models.mlp((64, 64, 64))
    with pytest.raises(QxcError, match="--max-perplexity-increase 5%: is for a language model"):
        qxcompiler.compile(
            proto, "cpu-x86", tmp_path / "out", calibration=[feeds] * 4, max_perplexity_increase="5%", weights="int4g16"
        )
