from __future__ import annotations

import json
from copy import deepcopy

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import given, settings

from qxcompiler.errors import TargetError, UnsupportedByTargetError
from qxcompiler.formats import Scheme
from qxcompiler.targets import COST_SECTIONS, Target, descriptor_files, load_target, target_json_schema, target_names


def test_the_targets_that_come_along_are_valid():
    assert {"cpu-x86", "npu-int8"} <= set(target_names())
    for name in target_names():
        target = load_target(name)
        assert target.name == name
        target.check_cost()


def test_preferred_schemes_are_what_they_were():
    preferred = {name: load_target(name).preferred for name in ("cpu-x86", "npu-int8")}
    linear, head, embedding = "lut3g128/a16", "int8g128/a16", "int8g128"
    assert preferred["cpu-x86"].model_dump(exclude_none=True) == {
        "linear": linear,
        "head": head,
        "embedding": embedding,
    }
    linear, head = "int4g32/a8", "int8g128/a8"
    assert preferred["npu-int8"].model_dump(exclude_none=True) == {
        "linear": linear,
        "head": head,
        "embedding": embedding,
    }


@pytest.fixture
def descriptor(tmp_path):
    def write(**changes):
        fields = load_target("npu-int8").model_dump(exclude_none=True) | {"name": "mine"} | changes
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
        ({"float8": {"elements": ["e3m4"], "group_sizes": [128]}}, "float8.elements"),
        ({"float8": {"elements": ["e4m3"]}}, "float8.group_sizes"),
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
    with pytest.raises(TargetError, match=rf"mine.yaml:\d+: field {field}[:.]"):
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
    with pytest.raises(TargetError, match=r"cpu-x86, .*npu-int8"):
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
        ("mxint8/a8", "int 2/3/4/8 bits"),
        ("fp8e4m3g64/a8", "int 2/3/4/8 bits"),
        ("ternaryg64/a8", "int 2/3/4/8 bits"),
    ],
)
def test_what_a_target_cannot_do_is_refused_with_what_it_can(scheme, can):
    with pytest.raises(UnsupportedByTargetError, match=can):
        load_target("npu-int8").check(Scheme.parse(scheme))
    load_target("cpu-x86").check(Scheme.parse(scheme))


def test_a_descriptor_without_hardware_still_compiles_but_has_no_cost(descriptor):
    bare = load_target(descriptor(**dict.fromkeys(COST_SECTIONS)))
    bare.check(Scheme.parse("int4g32/a8"))
    with pytest.raises(TargetError, match="target mine: has no section `core_clock_hz`"):
        bare.check_cost()
    with pytest.raises(TargetError, match="target mine: has no section `dma`"):
        load_target(descriptor(dma=None)).check_cost()


MEMORY = load_target("npu-int8").model_dump(exclude_none=True)["memory"]


def with_memory(**levels):
    return {"memory": {name: MEMORY[name] | levels.get(name, {}) for name in MEMORY}}


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"core_clock_hz": 0}, "core_clock_hz", "greater than 0"),
        ({"core_clock_hz": -1.0e9}, "core_clock_hz", "greater than 0"),
        ({"core_clock_hz": float("nan")}, "core_clock_hz", ""),
        ({"core_clock_hz": float("inf")}, "core_clock_hz", "less than"),
        ({"core_clock_hz": "1 GHz"}, "core_clock_hz", "plain number; the unit is in the field's name"),
        ({"core_clock_hz": True}, "core_clock_hz", "must be a number"),
        ({"core_clock": 1.0e9}, "core_clock", "choose among .*core_clock_hz"),
        ({"dialect": "tflite"}, "dialect", "'qxc', 'qdq' or 'contrib'"),
        (with_memory(sram={"size_bytes": -4}), "memory.sram.size_bytes", "greater than 0"),
        (with_memory(sram={"size_bytes": 1.5}), "memory.sram.size_bytes", "integer"),
        (with_memory(sram={"size_bytes": 10**30}), "memory.sram.size_bytes", "less than"),
        (with_memory(sram={"size": 4}), "memory.sram.size", "choose among size_bytes"),
        (with_memory(sram={"width_bits": 48}), "memory.sram.width_bits", "power of two"),
        (with_memory(sram={"below": "flash"}), "memory.sram.below", "no flash, only dram, sram"),
        (with_memory(dram={"below": "sram"}), "memory.sram.below|memory.dram.below", "below each other"),
        (with_memory(sram={"below": "sram"}), "memory.sram.below", "below each other"),
        ({"memory": {"SRAM!": MEMORY["dram"]}}, "memory.SRAM!", "small letters"),
        ({"memory_mode": {"weights": "flash"}}, "memory_mode.activations", "required"),
        (
            {"memory_mode": {"weights": "flash", "activations": "dram", "kv_cache": "dram", "cache": "sram"}},
            "memory_mode.weights",
            "no memory flash",
        ),
        (
            {"memory_mode": {"weights": "sram", "activations": "dram", "kv_cache": "dram", "cache": "dram"}},
            "memory_mode.weights",
            "dram is not filled from sram",
        ),
        ({"memory": None}, "memory_mode.cache", "none"),
        ({"compute_units": {}}, "compute_units", "at least 1"),
        (
            {"compute_units": {"a": {"kind": "multiplier-array", "macs_per_cycle": {"int8": 4}}}},
            "compute_units.a.macs_per_cycle.int8",
            "WEIGHTS x ACTIVATIONS",
        ),
        (
            {"compute_units": {"a": {"kind": "multiplier-array", "macs_per_cycle": {"int8 x int8": 0}}}},
            "compute_units.a.macs_per_cycle.int8 x int8",
            "greater than 0",
        ),
        ({"compute_units": {"a": {"kind": "quantum", "macs_per_cycle": {}}}}, "compute_units.a.kind", "bit-serial"),
        (
            {"compute_units": {"a": {"kind": "multiplier-array", "macs_per_cycle": {"int1 x int8": 9}}}},
            "compute_units.a",
            "bit-serial",
        ),
        ({"dma": {"channels": 0, "alignment_bytes": 1, "overlaps_compute": True}}, "dma.channels", "greater than 0"),
    ],
)
def test_impossible_hardware_is_refused_in_one_line(descriptor, changes, field, says):
    with pytest.raises(TargetError, match=rf"mine\.yaml:\d+: field ({field}): .*{says}") as caught:
        load_target(descriptor(**changes))
    assert "\n" not in str(caught.value)


def test_an_error_names_the_line(tmp_path, descriptor):
    path = descriptor()
    lines = path.read_text().splitlines()
    index = max(index for index, line in enumerate(lines) if "burst_length_bytes" in line)
    lines[index] = "    burst_length_bytes: 63"
    path.write_text("\n".join(lines))
    with pytest.raises(TargetError, match=rf"mine\.yaml:{index + 1}: field memory.sram.burst_length_bytes"):
        load_target(path)


FIELDS = load_target("cpu-x86").model_dump(exclude_none=True)
del FIELDS["measured"]["kernels"][2:]


def places(value, place=()):
    yield place
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*place, key))


PLACES = sorted((place for place in places(FIELDS) if place), key=str)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.just({"a": 1}),
)


@settings(max_examples=200, deadline=None)
@given(place=st.sampled_from(PLACES), value=ODD)
def test_any_wrong_value_anywhere_is_one_line(tmp_path_factory, place, value):
    fields = deepcopy(FIELDS)
    inner = fields
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path = tmp_path_factory.mktemp("any") / "any.yaml"
    path.write_text(yaml.safe_dump(fields))
    try:
        assert isinstance(load_target(path), Target)
    except (TargetError, UnsupportedByTargetError) as error:
        assert "\n" not in str(error)
        assert "any.yaml" in str(error) or isinstance(error, UnsupportedByTargetError)


def write(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


def test_a_descriptor_inherits_key_by_key(tmp_path):
    write(tmp_path, "base.yaml", "name: base\ninherit: npu-int8\nmemory: {sram: {size_bytes: 4096}}\n")
    path = write(tmp_path, "mine.yaml", "name: mine\ninherit: base.yaml\ncore_clock_hz: 5e8\ndma: null\n")
    target, base = load_target(path), load_target("npu-int8")
    assert (target.name, target.core_clock_hz, target.dma) == ("mine", 5e8, None)
    assert target.memory["sram"] == base.memory["sram"].model_copy(update={"size_bytes": 4096})
    assert target.memory["dram"] == base.memory["dram"]
    assert (target.description, target.preferred) == (base.description, base.preferred)
    assert [file.name for file in descriptor_files(path)] == ["mine.yaml", "base.yaml"]


def test_an_inherited_mistake_is_named_where_it_stands(tmp_path):
    write(tmp_path, "base.yaml", "inherit: npu-int8\n\ncore_clock_hz: 0\n")
    path = write(tmp_path, "mine.yaml", "name: mine\ninherit: base.yaml\n")
    with pytest.raises(TargetError, match=r"base\.yaml:3: field core_clock_hz"):
        load_target(path)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"mine.yaml": "inherit: mine.yaml"}, r"mine\.yaml:1: field inherit: mine.yaml inherits this descriptor"),
        (
            {"mine.yaml": "name: a\ninherit: b.yaml", "b.yaml": "inherit: c.yaml", "c.yaml": "inherit: b.yaml"},
            r"c\.yaml:1: field inherit: b.yaml inherits this descriptor",
        ),
        ({"mine.yaml": "inherit: gpu-9000"}, "no target and no file gpu-9000: name one of .*cpu-x86"),
        ({"mine.yaml": "inherit: ../outside.yaml"}, "leads out of the descriptor's folder"),
        ({"mine.yaml": "inherit: /etc/passwd"}, "leads out of the descriptor's folder"),
        ({"mine.yaml": "inherit: [npu-int8]"}, "must be a target's name"),
        ({"mine.yaml": "inherit: b.yaml", "b.yaml": "- 1"}, r"b\.yaml: not a mapping"),
        (
            {f"{n}.yaml": f"inherit: {n + 1}.yaml" for n in range(20)} | {"mine.yaml": "inherit: 0.yaml"},
            "more than 8 descriptors in a row",
        ),
    ],
)
def test_what_cannot_be_inherited_is_refused(tmp_path, files, says):
    for name, text in files.items():
        write(tmp_path, name, text)
    with pytest.raises(TargetError, match=says):
        load_target(tmp_path / "mine.yaml")


def test_the_json_schema_describes_every_field_and_its_values():
    schema = json.loads(json.dumps(target_json_schema()))
    assert schema["properties"]["dialect"]["enum"] == ["qxc", "qdq", "contrib"]
    sections = {"Target": schema, **schema["$defs"]}
    for name, section in sections.items():
        assert section["additionalProperties"] is False
        for field, about in section["properties"].items():
            assert about.get("description"), (name, field)
    integer = schema["$defs"]["IntegerSupport"]["properties"]
    assert integer["bits"]["items"] == {"enum": [2, 3, 4, 5, 6, 8]}
    assert schema["$defs"]["MemoryLevel"]["properties"]["size_bytes"]["exclusiveMinimum"] == 0


def test_a_target_is_shown_as_it_can_be_read_again(qxc, tmp_path):
    for name in ("x86-avx2", "imx93-ethos-u65"):
        path = write(tmp_path, "shown.yaml", qxc("targets", name).stdout)
        assert load_target(path) == load_target(name).model_copy(update={"inherit": None})
    assert json.loads(qxc("targets", "--schema").stdout) == target_json_schema()
