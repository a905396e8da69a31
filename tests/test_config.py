"""`compile.yaml`: written beside every result, and enough to compile it again."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import yaml

import qxcompiler
from qxcompiler.config import CONFIG, load_config
from qxcompiler.errors import TargetError, UsageError
from qxcompiler.options import Options

OPTIONS = {"weights": "int4g16", "samples": 3, "length": 12, "quantizer": "gptq", "seed": 7, "keep": "^head$"}


def written(folder) -> dict[str, object]:
    return yaml.safe_load((folder / CONFIG).read_text())


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "report.json"}


def test_a_compile_is_repeated_from_what_it_wrote(tiny, tmp_path, qxc):
    """From another folder, with nothing else on the command line, to the same bytes."""
    once, again = tmp_path / "once", tmp_path / "again"
    qxcompiler.compile(tiny.model, "cpu-x86", once, calibration=tiny.calibration, **OPTIONS)
    result = qxc("compile", "--config", once / CONFIG, "-o", again)
    assert result.returncode == 0, result.stderr
    assert "is not what it was" not in result.stderr
    assert contents(once) == contents(again)


def test_all_of_it_is_written(tiny, tmp_path):
    out = tmp_path / "out"
    qxcompiler.compile(tiny.model, "cpu-x86", out, calibration=tiny.calibration, **OPTIONS)
    said = written(out)
    assert list(said) == ["model", "target", "calibration", *Options.model_fields, "made_with"]
    assert said["model"] == "../tiny/model.onnx"
    assert said["calibration"] == "../tiny/calibration.txt"
    assert {name: said[name] for name in OPTIONS} == OPTIONS
    assert set(said["made_with"]["sha256"]) == {said["model"], said["calibration"]}
    assert set(said["made_with"]["versions"]) == {"qxcompiler", "numpy", "onnxruntime", "torch"}


def test_several_texts_are_mixed_and_mixed_again(tiny, tmp_path, qxc):
    once, again = tmp_path / "once", tmp_path / "again"
    given = [part for text in (tiny.calibration, tiny.evaluation) for part in ("--calibration", text)]
    options = [f"--{name}={value}" for name, value in OPTIONS.items()]
    assert qxc("compile", tiny.model, "--target", "cpu-x86", "-o", once, *given, *options).returncode == 0
    assert written(once)["calibration"] == ["../tiny/calibration.txt", "../tiny/evaluation.txt"]
    assert {"../tiny/calibration.txt", "../tiny/evaluation.txt"} < set(written(once)["made_with"]["sha256"])
    assert load_config(once / CONFIG).calibration == [once / name for name in written(once)["calibration"]]
    assert qxc("compile", "--config", once / CONFIG, "-o", again).returncode == 0
    assert contents(once) == contents(again)
    alone = tmp_path / "alone"
    qxcompiler.compile(tiny.model, "cpu-x86", alone, calibration=[tiny.calibration], **OPTIONS)
    assert written(alone)["calibration"] == "../tiny/calibration.txt"
    assert contents(alone)["model.onnx"] != contents(once)["model.onnx"]


def test_what_the_command_line_says_comes_first(tiny, tmp_path, qxc):
    file = tmp_path / "mine.yaml"
    file.write_text("model: tiny/model.onnx\ntarget: cpu-x86\nquantizer: rtn\nweights: int8g32\nsamples: 5\n")
    assert qxc("compile", "--config", file, "-o", tmp_path / "out", "--weights", "int4g16").returncode == 0
    said = written(tmp_path / "out")
    assert (said["weights"], said["quantizer"], said["samples"]) == ("int4g16", "rtn", 5)


def test_formats_on_the_command_line_go_before_the_allocation_of_the_file(tiny, tmp_path, qxc):
    out = tmp_path / "out"
    small = {"samples": 3, "length": 12, "verification": False}
    qxcompiler.compile(tiny.model, "cpu-x86", out, calibration=tiny.calibration, **small)
    assert written(out)["allocation"] == "budget"
    for number, given in enumerate((("--weights", "int4g16"), ("--plan", out / "plan.yaml"))):
        again = tmp_path / f"again{number}"
        result = qxc("compile", "--config", out / CONFIG, "-o", again, *given)
        assert result.returncode == 0, result.stderr
        assert written(again)["allocation"] is None
    assert (again / "model.onnx").read_bytes() == (out / "model.onnx").read_bytes()


def test_descriptors_plans_and_samples_are_found_from_the_file(tiny, tmp_path):
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "compile.yaml").write_text("target: ../npu.yaml\nplan: plan.yaml\ncalibration: ../tiny/calibration.txt\n")
    config = load_config(folder / "compile.yaml")
    assert config.target == str(folder / "../npu.yaml")
    assert config.plan == folder / "plan.yaml"
    assert config.calibration.resolve() == tiny.calibration


def test_files_that_have_changed_are_warned_of(tiny, tmp_path, qxc):
    qxcompiler.compile(tiny.model, "cpu-x86", tmp_path / "out", calibration=tiny.calibration, **OPTIONS)
    tiny.calibration.write_text(tiny.evaluation.read_text())
    result = qxc("compile", "--config", tmp_path / "out" / CONFIG, "-o", tmp_path / "again")
    assert result.returncode == 0
    (warning,) = (line for line in result.stderr.splitlines() if "is not what it was when" in line)
    assert "calibration.txt" in warning


def test_what_was_in_memory_is_left_out(tiny, tmp_path, qxc):
    feeds = [{"input_ids": np.arange(8)[None] % 7}] * 2
    qxcompiler.compile(onnx.load(tiny.model), "cpu-x86", tmp_path / "out", calibration=feeds, weights="int4g16")
    assert (written(tmp_path / "out")["model"], written(tmp_path / "out")["calibration"]) == (None, None)
    result = qxc("compile", "--config", tmp_path / "out" / CONFIG, "-o", tmp_path / "again")
    assert result.returncode == 2
    assert "MODEL: is missing: give it, or a --config file that says it" in result.stderr


def test_a_folder(tiny, tmp_path, qxc):
    qxcompiler.compile_folder(tiny.folder, "cpu-x86", tmp_path / "out", quantizer="rtn", weights="int4g16")
    assert written(tmp_path / "out")["model"] == "../tiny"
    assert qxc("compile", "--config", tmp_path / "out" / CONFIG, "-o", tmp_path / "again").returncode == 0
    assert (tmp_path / "again/model.onnx").read_bytes() == (tmp_path / "out/model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("wieghts: int4", UsageError, "field wieghts: Extra inputs are not permitted: choose among weights"),
        ("samples: 0", UsageError, "field samples: Input should be greater than or equal to 1: correct it"),
        ("samples: [1]", UsageError, "field samples"),
        ("- weights", TargetError, "not a mapping of fields"),
        ("weights: int4\nweights: int8", TargetError, "is there twice"),
        ("weights: !!python/object:os.system {}", TargetError, "not readable YAML"),
    ],
)
def test_bad_files(tmp_path, text, error, said):
    (tmp_path / "compile.yaml").write_text(text)
    with pytest.raises(error) as raised:
        load_config(tmp_path / "compile.yaml")
    assert said in str(raised.value)
    assert str(tmp_path / "compile.yaml") in str(raised.value)


def test_a_file_that_is_missing(tmp_path, qxc):
    result = qxc("compile", "--config", tmp_path / "none.yaml")
    assert result.returncode == 2
    assert "none.yaml: cannot be read" in result.stderr


def test_memory_stands_in_the_report(tiny, tmp_path):
    report = qxcompiler.compile(tiny.model, "cpu-x86", tmp_path / "out", quantizer="rtn", weights="int4g16")
    assert 50e6 < report.peak_memory_bytes < 20e9
    assert json.loads((tmp_path / "out/report.json").read_text())["peak_memory_bytes"] == report.peak_memory_bytes


def test_descriptors_that_are_inherited_are_noted(tiny, tmp_path):
    (tmp_path / "base.yaml").write_text("inherit: cpu-x86\n")
    (tmp_path / "mine.yaml").write_text("name: mine\ninherit: base.yaml\n")
    out = tmp_path / "out"
    qxcompiler.compile(tiny.model, tmp_path / "mine.yaml", out, weights="int4g16", quantizer="rtn")
    said = written(out)
    assert said["target"] == "../mine.yaml"
    assert {"../mine.yaml", "../base.yaml"} < set(said["made_with"]["sha256"])
