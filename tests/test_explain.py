"""`qxc explain`: what a report says of one site."""

from __future__ import annotations

import json

import graph_models
import onnx
import pytest
from conftest import named_as_published
from tiny_transformers import VOCABULARY

import qxcompiler
from qxcompiler.errors import QxcError
from qxcompiler.report import explain

FAST = {"quantizer": "rtn", "samples": 4, "length": 16, "verification": False, "weights": "int4g16"}


@pytest.fixture
def compiled(tiny, tmp_path):
    model, _ = graph_models.llama(vocabulary=VOCABULARY, width=64, hidden=128)
    onnx.save(named_as_published(model), tiny.model)

    def run(**options):
        out = tmp_path / "out"
        report = qxcompiler.compile(tiny.model, "cpu-x86", out, calibration=tiny.calibration, **FAST | options)
        return report, out

    return run


def test_choices_are_priced_as_the_budget_prices_them(compiled):
    report, out = compiled(bits_per_weight=4.6)
    (limit,) = report.allocation.limits
    assert limit.price > 0
    best = 0
    for site in (site for site in report.sites if site.considered):
        found = explain(out, site.name)
        assert found.site == site
        (group,) = [group for group in report.allocation.groups if site.name in group.sites]
        assert {site.name, *found.agrees_with} == set(group.sites)
        assert [choice.format for choice in found.choices] == [f"int{bits}g16" for bits in (2, 3, 4, 5, 6, 8)]
        for choice, row in zip(found.choices, group.choices, strict=True):
            assert choice.priced == pytest.approx(row.error + limit.price * row.costs["bytes"])
        (chosen,) = (choice for choice in found.choices if choice.chosen)
        assert f"{chosen.format}/a16" == site.scheme
        best += chosen is min(found.choices, key=lambda choice: choice.priced)
    chosen_for = sum(site.considered is not None for site in report.sites)
    assert best >= chosen_for - max(len(group.sites) for group in report.allocation.groups)  # one may round off


def test_steps_up_and_down(compiled):
    report, out = compiled(bits_per_weight=4.6)
    site = next(site for site in report.sites if site.scheme in ("int4g16/a16", "int5g16/a16"))
    bits = int(site.scheme[3])
    found = explain(out, site.name)
    error = {choice.format: choice.error for choice in found.choices}
    size = {choice.format: choice.bytes for choice in found.choices}
    here = site.scheme.split("/")[0]
    for way, other in (("up", f"int{bits + 1}g16"), ("down", f"int{bits - 1}g16")):
        (said,) = (reason for reason in found.reasons if reason.startswith(f"One step {way}, {other}: "))
        assert f" {size[other] - size[here]:+,} bytes, error {error[other] - error[here]:+.3g}, " in said


def test_sites_without_a_choice(compiled):
    report, out = compiled(bits_per_weight=4.6, keep="down")
    down, embedding = (next(s for s in report.sites if s.role == role).name for role in ("down", "embedding"))
    assert explain(out, down).reasons == ["It stays in floating point: kept by --keep down."]
    assert "The budget does not choose for it (embedding)" in explain(out, embedding).reasons[0]
    report, out = compiled()
    found = explain(out, embedding)
    assert "There was no budget" in found.reasons[0]
    assert not found.choices
    assert not found.limits
    assert found.share == pytest.approx(found.site.bytes / sum(site.bytes for site in report.sites))


def test_names_that_do_not_say_which(compiled, tmp_path):
    report, out = compiled()
    with pytest.raises(QxcError, match=r"^matmul: is in the names of \d+ sites: give one of matmul"):
        explain(out, "matmul")
    with pytest.raises(QxcError, match=r"^nowhere: no site has this name"):
        explain(out, "nowhere")
    unique = max((site.name for site in report.sites), key=len)
    assert explain(out / "report.json", unique).site.name == unique
    (tmp_path / "empty").mkdir()
    with pytest.raises(QxcError, match=r"empty: holds no report\.json: name what"):
        explain(tmp_path / "empty", "a")
    for name in ("a", "b"):
        (tmp_path / "empty" / f"{name}.report.json").write_text("{}")
    with pytest.raises(QxcError, match=r"empty: holds several reports: name one of a\.report\.json, b\.report\.json"):
        explain(tmp_path / "empty", "a")
    with pytest.raises(QxcError, match=r"a\.report\.json: is not a report of this version: compile"):
        explain(tmp_path / "empty" / "a.report.json", "a")
    with pytest.raises(QxcError, match="nothing: cannot be read"):
        explain(tmp_path / "nothing", "a")


def test_the_command(compiled, qxc):
    report, out = compiled(bits_per_weight=4.6)
    name = next(site.name for site in report.sites if site.role == "gate")
    ran = qxc("explain", out, name)
    assert ran.returncode == 0, ran.stderr
    assert "One step" in ran.stdout
    assert "agrees with" in ran.stdout
    assert "for a megabyte" in ran.stdout
    assert json.loads(qxc("explain", out, name, "--json").stdout)["site"]["name"] == name
