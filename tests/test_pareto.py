"""`qxc pareto`: one measurement, many budgets."""

from __future__ import annotations

import csv
import json
import sys
import xml.etree.ElementTree as ET

import graph_models
import onnx
import pytest
import yaml
from conftest import named_as_published
from tiny_transformers import VOCABULARY

import qxcompiler
from qxcompiler.errors import QxcError
from qxcompiler.report import parse_budgets

OPTIONS = {"quantizer": "rtn", "samples": 4, "length": 16, "weights": "int4g16"}


@pytest.fixture
def decoder(tiny):
    model, _ = graph_models.llama(vocabulary=VOCABULARY, width=64, hidden=128)
    onnx.save(named_as_published(model), tiny.model)
    return tiny


def front_of(decoder, out, **options):
    return qxcompiler.pareto(decoder.model, "cpu-x86", out, calibration=decoder.calibration, **OPTIONS | options)


def test_every_point_is_what_a_compile_with_that_budget_does(decoder, tmp_path):
    front = front_of(decoder, tmp_path / "front", budgets="4:6:0.5", bits_per_weight=4.6)
    assert [point.budget for point in front.mixed] == [4, 4.5, 4.6, 5, 5.5, 6]
    for point in front.mixed:
        assert point.bits_per_weight <= point.budget
    report = qxcompiler.compile(
        decoder.model,
        "cpu-x86",
        tmp_path / "out",
        calibration=decoder.calibration,
        verification=False,
        bits_per_weight=4.6,
        **OPTIONS,
    )
    (marked,) = (point for point in front.points if point.budget == front.marked == 4.6)
    groups = report.allocation.groups
    assert marked.formats == [group.chosen for group in groups]
    assert marked.expected_error == report.allocation.expected_error
    assert front.layers == ["+".join(group.sites) for group in groups]

    plan = tmp_path / "front" / "plan-4.6.yaml"
    assert yaml.safe_load(plan.read_text()) == yaml.safe_load((tmp_path / "out" / "plan.yaml").read_text())

    with (tmp_path / "front" / "pareto.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["plan", "budget", "bits_per_weight", "bytes", "expected_error"]
    assert [float(row["expected_error"]) for row in rows] == [point.expected_error for point in front.points]
    assert {row["plan"] for row in rows if not row["budget"]} == {f"int{bits}g16" for bits in (2, 3, 4, 5, 6, 8)}


def test_more_bits_lose_less_and_mixed_plans_less_than_one_format(decoder, tmp_path):
    probe = front_of(decoder, tmp_path / "probe", budgets=[8.9])
    uniform = [point for point in probe.points if point.budget is None]
    front = front_of(decoder, tmp_path / "front", budgets=[point.bits_per_weight for point in uniform])
    errors = [point.expected_error for point in front.mixed]
    assert errors == sorted(errors, reverse=True)
    for mixed, same in zip(front.mixed, uniform, strict=True):
        assert mixed.expected_error <= same.expected_error * (1 + 1e-4)
    assert (
        sum(mixed.expected_error < 0.9 * same.expected_error for mixed, same in zip(front.mixed, uniform, strict=True))
        >= 2
    )


def test_budgets_too_small_are_left_out_and_named(decoder, tmp_path):
    front = front_of(decoder, tmp_path / "front", budgets="1:5:2")
    assert [point.budget for point in front.mixed] == [3, 5]  # int2g16 takes 3 bits
    (warning,) = (each for each in front.warnings if "matplotlib" not in each)
    assert warning.startswith("1 bits a weight: is too little: the smallest formats take 3.000 bits")
    with pytest.raises(QxcError, match="2 bits a weight: is too little: the smallest formats take"):
        front_of(decoder, tmp_path / "other", budgets="1:2:1")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("text", "budgets"), [("2.5:3:0.25", [2.5, 2.75, 3.0]), ("3:3:1", [3.0]), ("2:3.9:0.9", [2.0, 2.9, 3.8])]
)
def test_budgets(text, budgets):
    assert parse_budgets(text) == budgets


@pytest.mark.parametrize("text", ["3", "3:2:1", "0:2:1", "2:3:0", "2:3:-1", "a:b:c", "2:nan:1", "1:1e9:1", "2:3:1e-9"])
def test_budgets_that_are_none(text):
    with pytest.raises(QxcError, match=r"--budgets .*: not 1 to 1000 budgets above 0: write FIRST:LAST:STEP"):
        parse_budgets(text)


@pytest.mark.parametrize("options", [{"plan": "plan.yaml"}, {"max_size": "60MB"}])
def test_what_budgets_leave_nothing_of(decoder, tmp_path, options):
    with pytest.raises(QxcError, match="is not for several budgets: leave it out"):
        front_of(decoder, tmp_path / "front", budgets="4:6:0.5", **options)


def test_the_picture(decoder, tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("first", "second"):
        front = front_of(decoder, tmp_path / name, budgets="4:6:0.5", bits_per_weight=5)
        assert not front.warnings
    first, second = ((tmp_path / name / "pareto.svg").read_bytes() for name in ("first", "second"))
    assert first == second
    assert ET.fromstring(first).tag.endswith("svg")


def test_without_matplotlib_the_table_is_written_and_a_line_says_so(decoder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "qxcompiler.report.pareto_picture", raising=False)
    front = front_of(decoder, tmp_path / "front", budgets="4:6:0.5")
    assert front.warnings == ["no picture: matplotlib is not installed (pip install matplotlib)"]
    plans = {f"plan-{bits}.yaml" for bits in ("4", "4.5", "5", "5.5", "6")}
    assert {path.name for path in (tmp_path / "front").iterdir()} == {"pareto.csv"} | plans


def test_the_command(decoder, tmp_path, qxc):
    options = ["--weights", "int4g16", "--quantizer", "rtn", "--samples", 4, "--length", 16]
    given = ["--target", "cpu-x86", "--calibration", decoder.calibration, *options, "--budgets", "4:5:0.5"]
    ran = qxc("pareto", decoder.model, *given, "--bpw", 4.5, "-o", tmp_path / "front")
    assert ran.returncode == 0, ran.stderr
    assert "4.5 <" in ran.stdout
    ran = qxc("pareto", decoder.model, *given, "--error", "frobenius", "--json")
    assert json.loads(ran.stdout)["term"] == "frobenius"
    assert (decoder.folder / "model-cpu-x86-pareto" / "pareto.csv").is_file()
