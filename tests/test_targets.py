from __future__ import annotations

import pytest
import yaml

from qxcompiler.errors import TargetError, UnsupportedByTargetError
from qxcompiler.formats import Scheme
from qxcompiler.targets import load_target, target_names


def test_the_targets_that_come_along_are_valid():
    assert {"cpu-x86", "npu-int8"} <= set(target_names())
    for name in target_names():
        assert load_target(name).name == name


@pytest.fixture
def descriptor(tmp_path):
    def write(**changes):
        fields = load_target("npu-int8").model_dump() | {"name": "mine", "codebook": None} | changes
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({name: value for name, value in fields.items() if value is not None}))
        return path

    return write


def test_a_descriptor_of_ones_own_is_read(descriptor):
    assert load_target(descriptor()).name == "mine"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"colour": "red"}, "colour"),
        ({"integer": {"bits": [7], "group_sizes": [32], "zero_points": False}}, "integer.bits"),
        ({"integer": {"bits": [4], "group_sizes": [33], "zero_points": False}}, "integer.group_sizes"),
        ({"integer": {"bits": [4], "group_sizes": [32]}}, "integer.zero_points"),
        ({"mx": []}, "mx"),
        ({"mx": ["mxfp5"]}, "mx"),
        ({"activations": []}, "activations"),
        ({"activations": ["a4"]}, "activations"),
        ({"dialect": "klingon"}, "dialect"),
        ({"name": ""}, "name"),
        ({"preferred": {"linear": "int9", "head": "int8/a8", "embedding": "int8"}}, "preferred.linear"),
        ({"preferred": {"linear": "int8", "head": "int8/a8", "embedding": "int8"}}, "preferred.linear"),
        ({"preferred": {"linear": "int8/a8", "head": "int8", "embedding": "int8"}}, "preferred.head"),
        ({"preferred": {"linear": "int8/a8", "head": "int8/a8", "embedding": "int8/a8"}}, "preferred.embedding"),
    ],
)
def test_a_wrong_field_is_named(descriptor, changes, field):
    with pytest.raises(TargetError, match=rf"mine.yaml: field {field}[:.]"):
        load_target(descriptor(**changes))


def test_a_target_may_not_prefer_what_it_cannot_do(descriptor):
    with pytest.raises(UnsupportedByTargetError):
        load_target(descriptor(preferred={"linear": "int3g128a/a8", "head": "int8g128/a8", "embedding": "int8g128"}))


@pytest.mark.parametrize(
    "content",
    [
        "[1, 2]",
        "a: [",
        "",
        "1: 2",
        "[1]: 2",
        "a: b\na: b",
        "a: {b: 1, b: 2}",
        "a: &x 1\nb: *x",
        "a: " + "[" * 100_000,
        "a: " + "- " * 1000,
        "a: " + "9" * 5000,
        "a: !!timestamp x",
        "a: !!bool x",
        "a: 1\n---\na: 2",
        "a: \0",
        "a: 2001-13-45",
        "# " + "x" * (5 << 20),
        "!!python/object/apply:os.system ['true']",
    ],
)
def test_what_is_no_descriptor_is_refused(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(TargetError, match=r"bad\.yaml"):
        load_target(path)


def test_a_repeated_key_is_named(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\ndescription: b\nname: c\n")
    with pytest.raises(TargetError, match=r"twice\.yaml: .*line 3: 'name' is there twice"):
        load_target(path)


def test_laughs_are_not_multiplied(tmp_path):
    path = tmp_path / "laughs.yaml"
    lines = ["a0: &a0 [ha, ha]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]
    path.write_text("\n".join(lines))
    with pytest.raises(TargetError, match="aliases"):
        load_target(path)


def test_a_missing_target_names_those_there_are():
    with pytest.raises(TargetError, match=r"cpu-x86, npu-int8"):
        load_target("gpu-9000")


@pytest.mark.parametrize(
    ("scheme", "can"),
    [
        ("int3g128a/a8", "without zero points"),
        ("lut3g128/a8", "int 2/3/4/8 bits"),
        ("int5g128/a8", "int 2/3/4/8 bits"),
        ("int4g16/a8", "groups of 32/64/128/row"),
        ("int4g32/a16", "a8"),
        ("int4g32/a32", "a8"),
        ("mxfp4/a8", "int 2/3/4/8 bits"),
        ("ternaryg64/a8", "int 2/3/4/8 bits"),
    ],
)
def test_what_a_target_cannot_do_is_refused_with_what_it_can(scheme, can):
    with pytest.raises(UnsupportedByTargetError, match=can):
        load_target("npu-int8").check(Scheme.parse(scheme))
    load_target("cpu-x86").check(Scheme.parse(scheme))
