"""The plan file: read again as it was written, edited and obeyed, or refused with its line."""

from __future__ import annotations

import graph_models
import onnx
import pytest
import yaml
from conftest import named_as_published
from tiny_transformers import VOCABULARY

import qxcompiler
from qxcompiler.errors import QxcError

FAST = {"quantizer": "rtn", "samples": 4, "length": 16, "verification": False}


@pytest.fixture
def decoder(tiny):
    model, _ = graph_models.llama(vocabulary=VOCABULARY, width=64, hidden=128)
    onnx.save(named_as_published(model), tiny.model)
    return tiny


def compiled(decoder, out, target="cpu-x86", **options):
    return qxcompiler.compile(decoder.model, target, out, calibration=decoder.calibration, **(FAST | options))


def test_it_says_what_was_asked_for_and_what_came_of_it(decoder, tmp_path):
    report = compiled(decoder, tmp_path / "out", bits_per_weight=4.6, weights="int4g16")
    text = (tmp_path / "out" / "plan.yaml").read_text()
    top = text[: text.index("target:")].splitlines()
    (limit,) = report.allocation.limits
    assert (
        top[0]
        == f"# {sum(s.bytes for s in report.sites):,} bytes in 16 sites, {report.bits_per_weight:.3f} bits a weight"
    )
    assert top[1] == f"# --bpw 4.6: {limit.used / limit.limit:.3%} used"
    assert f"{report.allocation.expected_error:.4g}, divergence: nats a position" in top[-1]
    lines = {line.split(":")[0].strip(): line for line in text.splitlines()}
    total = sum(site.bytes for site in report.sites)
    for site in report.sites:
        line = lines[site.name]
        assert f" {site.scheme}  # " in line
        if site.bytes:
            assert f"# {site.bytes:,} bytes, {site.bytes / total:.2%}" in line
        else:  # the head, which has the embedding's weight
            assert line.endswith("# its weight is counted above")
        assert ("error" in line) == (site.considered is not None)


def test_given_back_it_is_obeyed(decoder, tmp_path):
    first = compiled(decoder, tmp_path / "first", bits_per_weight=4.6, weights="int4g16")
    written = tmp_path / "first" / "plan.yaml"
    again = compiled(decoder, tmp_path / "again", plan=written)
    assert [site.scheme for site in again.sites] == [site.scheme for site in first.sites]
    edited = next(site for site in first.sites if site.role == "down")
    text = written.read_text().replace(f"{edited.name}: {edited.scheme}", f"{edited.name}: lut2g32s8/a8")
    (tmp_path / "edited.yaml").write_text(text)
    third = compiled(decoder, tmp_path / "third", plan=tmp_path / "edited.yaml")
    assert {site.name: site.scheme for site in third.sites if site.scheme != "lut2g32s8/a8"} == {
        site.name: site.scheme for site in first.sites if site.name != edited.name
    }


def test_names_that_yaml_reads_otherwise_stay_names(tmp_path):
    b = graph_models.Builder()
    x, names = "x", ["yes", "a: b # c", "1.0", "long" * 60, "line\nbreak", "ä"]
    for name in names:
        x = b.op("Relu", b.linear(x, 64, 64, name=name))
    model = b.model({"x": (onnx.TensorProto.FLOAT, ["n", 64])}, [x])
    first = qxcompiler.compile(model, "cpu-x86", tmp_path / "first", **FAST)
    plan = tmp_path / "first" / "plan.yaml"
    assert list(yaml.safe_load(plan.read_text())["sites"]) == [site.name for site in first.sites]
    again = qxcompiler.compile(model, "cpu-x86", tmp_path / "again", plan=plan, **FAST)
    assert (tmp_path / "again" / "plan.yaml").read_text() == plan.read_text()
    assert again.sites == first.sites


@pytest.mark.parametrize(
    ("old", "new", "target", "said"),
    [
        ("int4g32/a8", "int9/a8", "npu-int8", "not a weight format"),
        ("int4g32/a8", "lut3g128/a8", "npu-int8", "target npu-int8 cannot hold weights as lut3g128: choose from: int"),
        (
            "int4g32/a8",
            "int4g32/a16",
            "npu-int8",
            "target npu-int8 cannot multiply activations as a16: choose from: a8",
        ),
        ("int4g32/a8", "int4g32", "npu-int8", "has scheme int4g32: give a format and an activation precision"),
    ],
)
def test_the_line_that_cannot_hold_is_named(decoder, tmp_path, old, new, target, said):
    compiled(decoder, tmp_path / "first", target)
    text = (tmp_path / "first" / "plan.yaml").read_text()
    line = text[: text.rindex(old)].count("\n") + 1
    place = text.rindex(old)
    (tmp_path / "edited.yaml").write_text(text[:place] + new + text[place + len(old) :])
    with pytest.raises(QxcError) as raised:
        compiled(decoder, tmp_path / "second", target, plan=tmp_path / "edited.yaml")
    assert str(raised.value).startswith(f"{tmp_path / 'edited.yaml'}:{line}: site ")
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("edit", "where", "said"),
    [
        (lambda text: text + "  other: float\n", -1, "the model has no site other"),
        (lambda text: text + "colour: red\n", -1, "has an unknown field `colour`"),
        (lambda text: "target: npu-int8\nsites:" + text.split("sites:")[1], 0, "is a plan for target npu-int8"),
        (lambda text: "sites: {a: float}\n", 0, "the model has no site a"),
    ],
)
def test_so_are_lines_that_do_not_belong(decoder, tmp_path, edit, where, said):
    compiled(decoder, tmp_path / "first")
    text = edit((tmp_path / "first" / "plan.yaml").read_text())
    (tmp_path / "edited.yaml").write_text(text)
    line = range(1, text.count("\n") + 1)[where]
    with pytest.raises(QxcError, match=rf"edited\.yaml:{line}: {said}"):
        compiled(decoder, tmp_path / "second", plan=tmp_path / "edited.yaml")


def test_a_shared_weight_in_two_formats_is_named_with_a_line(decoder, tmp_path):
    compiled(decoder, tmp_path / "first")
    text = (tmp_path / "first" / "plan.yaml").read_text()
    (tmp_path / "edited.yaml").write_text(text.replace("int8g128/a16", "int4g128/a16"))
    with pytest.raises(QxcError, match=r"edited\.yaml:\d+: .* share weight .* and differ in format"):
        compiled(decoder, tmp_path / "second", plan=tmp_path / "edited.yaml")


def pins(first, **schemes):
    """A plan for the first site of each role."""
    named = {next(site.name for site in first.sites if site.role == role): scheme for role, scheme in schemes.items()}
    return named, yaml.safe_dump({"target": "cpu-x86", "sites": named})


def test_beside_a_budget_a_plan_pins_some_sites(decoder, tmp_path):
    free = compiled(decoder, tmp_path / "free", bits_per_weight=4)
    named, text = pins(free, down="int8g32s8/a8", gate="lut2g16/a16", query="float")
    (tmp_path / "pins.yaml").write_text(text)
    report = compiled(decoder, tmp_path / "out", bits_per_weight=4, plan=tmp_path / "pins.yaml")
    schemes = {site.name: site.scheme for site in report.sites}
    assert {name: schemes[name] for name in named} == named
    (limit,) = report.allocation.limits
    assert 0.9 * limit.limit < limit.used <= limit.limit
    chosen = {name: group for group in report.allocation.groups for name in group.sites}
    query, gate, down = (
        next(name for name in named if named[name] == scheme) for scheme in ("float", "lut2g16/a16", "int8g32s8/a8")
    )
    assert query not in chosen
    assert next(site.reason for site in report.sites if site.name == query) == "float in the plan"
    for name in (gate, down):
        assert chosen[name].sites == [name]  # what would share its operator is not bound to it
        assert [choice.format for choice in chosen[name].choices] == [named[name].split("/")[0]]
    counted = sum(choices.weights for choices in report.allocation.groups)
    assert limit.limit == 4 * counted / 8
    again = compiled(decoder, tmp_path / "again", bits_per_weight=4, plan=tmp_path / "pins.yaml")
    assert again.sites == report.sites


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": "int4g16"}, "--plan: says every site's scheme already: leave out --weights and --bpw"),
        ({"bits_per_weight": None}, r"pins\.yaml: has no scheme for site "),
        ({"text": "sites: {nowhere: float}\n"}, r"pins\.yaml:1: the model has no site nowhere"),
        ({"down": "int9/a16"}, r"pins\.yaml:\d: site .*: 'int9': not a weight format"),
        ({"target": "npu-int8"}, r"pins\.yaml:\d: is a plan for target cpu-x86"),
        ({"embedding": "int4g16"}, r"share weight .* and differ in format \(int4g16, int8g128\): give them the same"),
    ],
)
def test_pins_that_cannot_hold(decoder, tmp_path, change, said):
    free = compiled(decoder, tmp_path / "free")
    roles = {role: scheme for role, scheme in change.items() if role in ("down", "embedding")}
    text = change.get("text") or pins(free, **({"down": "int8g32s8/a8"} | roles))[1]
    (tmp_path / "pins.yaml").write_text(text)
    options = {"bits_per_weight": 4, "plan": tmp_path / "pins.yaml"} | {
        name: value for name, value in change.items() if name in ("weights", "bits_per_weight")
    }
    with pytest.raises(QxcError, match=said):
        compiled(decoder, tmp_path / "out", change.get("target", "cpu-x86"), **options)
