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
    ],
)
def test_a_wrong_field_is_named(descriptor, changes, field):
    with pytest.raises(TargetError, match=rf"mine.yaml: field {field}[:.]"):
        load_target(descriptor(**changes))


def test_a_target_may_not_prefer_what_it_cannot_do(descriptor):
    with pytest.raises(UnsupportedByTargetError):
        load_target(descriptor(preferred={"linear": "int3g128a/a8", "head": "int8g128/a8", "embedding": "int8g128"}))


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "", "!!python/object/apply:os.system ['true']"])
def test_what_is_no_descriptor_is_refused(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(TargetError, match=r"bad\.yaml"):
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
