"""What bad input gets: one clear line, the right exit status, nothing half-written, the input untouched."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

QUICK = ("--samples", 4, "--length", 16)


@pytest.fixture
def fails(tiny, qxc):
    """Compile and see that it fails as it should; returns the line."""

    def check(*arguments, model=None, status=2):
        before = snapshot(tiny.folder)
        out = tiny.folder / "out"
        model = model or tiny.model
        if "--target" not in arguments:
            arguments = (*arguments, "--target", "cpu-x86")
        result = qxc("compile", model, "-o", out, *arguments)
        lines = result.stderr.strip().splitlines()
        assert result.returncode == status, result.stderr
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("qxc: error: ")
        assert lines[0].count(": ") >= 3, lines[0]
        assert not result.stdout
        assert snapshot(tiny.folder) == before
        return lines[0]

    return check


def snapshot(folder):
    return {
        path: path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(folder.rglob("*"))
        if os.access(path, os.R_OK)
    }


def calibrated(tiny):
    return ("--calibration", tiny.calibration, *QUICK)


def test_not_an_onnx_file(tiny, fails):
    tiny.model.write_text("hello")
    assert "model.onnx: not an ONNX file" in fails(*calibrated(tiny))


def test_a_truncated_file(tiny, fails):
    data = tiny.model.read_bytes()
    tiny.model.write_bytes(data[: len(data) // 2])
    assert "model.onnx" in fails(*calibrated(tiny))


def test_no_file_or_a_folder(tiny, fails):
    assert "no such file" in fails(*calibrated(tiny), model=tiny.folder / "none.onnx")
    (tiny.folder / "empty").mkdir()
    assert "holds no .onnx file" in fails(*calibrated(tiny), model=tiny.folder / "empty")


@pytest.fixture
def external(tiny):
    """The tiny model with its weights in a file beside it, and a way to change where they are said to be."""
    onnx.save(
        onnx.load(tiny.model),
        tiny.model,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )

    def relocate(location):
        model = onnx.load(tiny.model, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        tiny.model.write_bytes(model.SerializeToString())

    return relocate


def test_external_data_missing(tiny, external, fails):
    (tiny.folder / "weights.bin").unlink()
    assert "weights.bin" in fails(*calibrated(tiny))


def test_external_data_short(tiny, external, fails):
    with (tiny.folder / "weights.bin").open("r+b") as file:
        file.truncate(1000)
    assert "weights.bin" in fails(*calibrated(tiny))


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/passwd", "a/../../outside.bin", "link.bin"])
def test_external_data_outside_the_folder(tiny, external, fails, location):
    (tiny.folder / "weights.bin").rename(tiny.folder.parent / "outside.bin")
    (tiny.folder / "link.bin").symlink_to(tiny.folder.parent / "outside.bin")
    external(location)
    assert location in fails(*calibrated(tiny))


def test_an_unknown_field_in_the_target(tiny, fails):
    path = tiny.folder / "npu.yaml"
    path.write_text("name: npu\nwatts: 3\n")
    assert "npu.yaml:2: field watts: there is no such field" in fails("--target", path, *calibrated(tiny))


def test_what_the_target_cannot_do(tiny, fails):
    line = fails("--target", "npu-int8", "--weights", "lut3g128", *calibrated(tiny), status=3)
    assert "target npu-int8: cannot hold weights as lut3g128: choose from: int 2/3/4/8 bits" in line
    assert "a16" in fails("--target", "npu-int8", "--activations", "a16", *calibrated(tiny), status=3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--weights", "int7"), "'int7': not a weight format"),
        (("--quantizer", "magic"), "'magic': no such quantizer"),
        (("--keep", "("), "not a regular expression"),
        (("--keep", "."), "leaves no site"),
        (("--activations", "a4"), "a4"),
        (("--samples", "0"), "samples"),
        (("--target", "gpu"), "no such target"),
        (("--device", "cuda"), "no CUDA device"),
        (("--bogus",), "bogus"),
    ],
)
def test_wrong_arguments(tiny, fails, arguments, said):
    if arguments[-1] == "cuda":
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("this machine has a CUDA device")
    assert said in fails(*arguments, "--calibration", tiny.calibration)


def test_gptq_without_samples(tiny, fails):
    (tiny.folder / "tokenizer.json").unlink()  # with it, the model would write some
    assert "needs samples" in fails("--quantizer", "gptq")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.txt", b""),
        ("blank.txt", b" \n "),
        ("short.txt", b"w1 w2"),
        ("binary.txt", b"\xff\xfe\x00"),
        ("bad.jsonl", b'{"txt": "w1"}\n'),
        ("broken.jsonl", b"{"),
        ("broken.npz", b"PK"),
        ("words.doc", b"w1"),
    ],
)
def test_useless_calibration_files(tiny, fails, name, content):
    path = tiny.folder / name
    path.write_bytes(content)
    assert name in fails("--calibration", path, *QUICK)


def test_calibration_arrays_that_do_not_fit(tiny, fails):
    path = tiny.folder / "samples.npz"
    ids = np.zeros((4, 16), np.int64)
    for arrays, said in (
        ({"tokens": ids}, "tokens"),
        ({"input_ids": ids[..., None, None]}, "input_ids"),
        ({"input_ids": ids.astype(np.float32)}, "input_ids"),
        ({"input_ids": ids, "past0k": np.zeros((4, 9, 0, 4), np.float32)}, "past0k"),
        ({"input_ids": ids[:0]}, "samples.npz"),
    ):
        np.savez(path, **arrays)
        assert said in fails("--calibration", path)
    np.savez(path, input_ids=np.array([[{}]], dtype=object))
    assert "samples.npz" in fails("--calibration", path)


def test_calibration_tokens_that_the_model_does_not_know(tiny, fails):
    path = tiny.folder / "samples.npz"
    np.savez(path, input_ids=np.full((4, 16), 10**6))
    assert "calibration samples" in fails("--calibration", path)


def test_no_tokenizer(tiny, fails):
    (tiny.folder / "tokenizer.json").unlink()
    assert "tokenizer.json" in fails(*calibrated(tiny))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(tiny, fails, value):
    model = onnx.load(tiny.model)
    tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
    array = numpy_helper.to_array(tensor).copy()
    array[1, 2] = value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, tiny.model)
    assert tensor.name in fails(*calibrated(tiny))


def test_weights_too_large_for_the_format(tiny, fails):
    model = onnx.load(tiny.model)
    tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2 and tensor.name != "table")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e12), tensor.name))
    onnx.save(model, tiny.model)
    line = fails("--quantizer", "rtn")
    assert tensor.name in line
    assert "too large" in line


def test_a_model_without_sites(tiny, fails):
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    value = [onnx.helper.make_tensor_value_info(name, 1, [2]) for name in "xy"]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", value[:1], value[1:])), tiny.model)
    assert "no linear layer" in fails("--quantizer", "rtn")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda plan: plan["sites"].popitem(), "no scheme for site"),
        (lambda plan: plan["sites"].update(nowhere="float"), "no site nowhere"),
        (lambda plan: plan["sites"].update({next(iter(plan["sites"])): "int4/a16"}), "a format only"),
        (lambda plan: plan["sites"].update({list(plan["sites"])[1]: "int4"}), "activation precision"),
        (lambda plan: plan["sites"].update({list(plan["sites"])[1]: "int44/a8"}), "int44"),
        (lambda plan: plan["sites"].update({next(iter(plan["sites"])): "float"}), "share weight"),
        (lambda plan: plan.pop("sites"), "no field"),
    ],
)
def test_plans_that_do_not_fit(tiny, fails, edit, said):
    import qxcompiler

    reference = tiny.folder.parent / "reference"
    qxcompiler.compile(tiny.model, "cpu-x86", reference, quantizer="rtn")
    import yaml

    plan = yaml.safe_load((reference / "plan.yaml").read_text())
    edit(plan)
    path = tiny.folder / "edited.yaml"
    path.write_text(yaml.safe_dump(plan))
    line = fails("--plan", path, "--quantizer", "rtn")
    assert "edited.yaml" in line
    assert said in line


def test_a_plan_that_says_a_site_twice(tiny, fails):
    path = tiny.folder / "twice.yaml"
    path.write_text("target: cpu-x86\nsites:\n  a: int4/a16\n  b: float\n  a: float\n")
    assert "twice.yaml: not readable YAML (line 5: 'a' is there twice)" in fails("--plan", path, "--quantizer", "rtn")


def test_a_plan_and_formats_at_once(tiny, fails):
    assert "--plan" in fails("--plan", tiny.folder / "p.yaml", "--weights", "int4", "--quantizer", "rtn")


def test_the_input_is_not_overwritten(tiny, qxc):
    before = snapshot(tiny.folder)
    result = qxc("compile", tiny.model, "--target", "cpu-x86", "-o", tiny.folder, "--quantizer", "rtn")
    assert result.returncode == 2
    assert "would be overwritten" in result.stderr
    assert snapshot(tiny.folder) == before


def test_an_output_that_is_a_file(tiny, fails):
    (tiny.folder / "out").write_text("mine")
    assert "out: is not a folder" in fails("--quantizer", "rtn")


def test_an_output_that_cannot_be_written(tiny, qxc):
    place = "/proc/nowhere/out"  # refuses root, too
    result = qxc("compile", tiny.model, "--target", "cpu-x86", "-o", place, "--quantizer", "rtn")
    assert result.returncode == 2
    assert "cannot be written" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_full_disk(tiny):
    """A limit on the size of files stands for the disk's: the same write fails in the same way."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))

    before = snapshot(tiny.folder)
    command = [sys.executable, "-P", "-m", "qxcompiler.cli", "compile", str(tiny.model), "--target", "cpu-x86"]
    command += ["-o", str(tiny.folder / "out"), "--quantizer", "rtn"]
    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, timeout=120)
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "cannot be written" in result.stderr
    assert snapshot(tiny.folder) == before


def test_an_earlier_output_survives_a_failure(tiny, qxc):
    out = tiny.folder / "out"
    good = qxc("compile", tiny.model, "--target", "cpu-x86", "-o", out, "--quantizer", "rtn")
    assert good.returncode == 0, good.stderr
    (out / "notes.txt").write_text("mine")
    before = snapshot(out)
    assert qxc("compile", tiny.model, "--target", "cpu-x86", "-o", out, "--weights", "int7").returncode == 2
    assert snapshot(out) == before
    again = qxc("compile", tiny.model, "--target", "cpu-x86", "-o", out, "--quantizer", "rtn", "--weights", "int2")
    assert again.returncode == 0, again.stderr
    assert (out / "notes.txt").read_text() == "mine"
    assert snapshot(out) != before


def test_a_broken_result_is_not_called_done(tiny, fails):
    """Weights of an input that is always zero, so large that eight bits leave nothing of the others."""
    weights = np.random.default_rng(0).standard_normal((32, 48)).astype(np.float32)
    weights[0] = 10_000
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, 1, ["b", n]) for name, n in (("x", 32), ("y", 48)))
    graph = onnx.helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weights, "w")])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8),
        tiny.model,
    )
    samples = np.random.default_rng(1).standard_normal((8, 32)).astype(np.float32)
    samples[:, 0] = 0
    np.savez(tiny.folder / "s.npz", x=samples)
    line = fails("--quantizer", "rtn", "--calibration", tiny.folder / "s.npz", status=1)
    assert "broken" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_in_the_middle(tiny, number):
    """Interrupted as soon as the temporary folder is there, which is gone afterwards."""
    tiny.calibration.write_text(tiny.calibration.read_text() * 50)
    before = snapshot(tiny.folder)
    command = [
        sys.executable,
        "-P",
        "-m",
        "qxcompiler.cli",
        "compile",
        str(tiny.model),
        "--target",
        "cpu-x86",
    ]
    command += [
        "-o",
        str(tiny.folder / "out"),
        "--calibration",
        str(tiny.calibration),
        "--samples",
        "500",
        "--length",
        "64",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # what a shell starts in the background ignores interrupts, and so do its children
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(tiny.folder.glob("out/.qxc-*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == "qxc: error: interrupted: nothing was written\n"
    assert not output
    assert snapshot(tiny.folder) == before


def test_other_commands_fail_in_one_line_too(tiny, qxc):
    for arguments, said in (
        (("eval", tiny.folder / "none.onnx", "--text", tiny.evaluation), "none.onnx"),
        (("eval", tiny.model, "--text", tiny.folder / "none.txt"), "none.txt"),
        (("generate", tiny.folder / "none.onnx", "--prompt", "w1"), "none.onnx"),
        (("inspect", tiny.calibration), "not an ONNX file"),
        (("targets", "gpu"), "no such target"),
        (("export", tiny.folder / "nothing", tiny.folder / "m"), "nothing"),
        (("fly",), "fly"),
    ):
        result = qxc(*arguments)
        assert result.returncode == 2, result.stderr
        assert len(result.stderr.splitlines()) == 1, result.stderr
        assert said in result.stderr


def test_json_is_all_that_is_printed(tiny, qxc):
    out = tiny.folder / "out"
    compiled = qxc(
        "compile",
        tiny.model,
        "--target",
        "cpu-x86",
        "-o",
        out,
        "--json",
        *calibrated(tiny),
        "--weights",
        "int4g16",
    )
    assert not compiled.stderr
    assert json.loads(compiled.stdout) == json.loads((out / "report.json").read_text())
    inspected = qxc("inspect", out / "model.onnx", "--json")
    # a fused node has its layers' names
    names = [name for site in json.loads(inspected.stdout)["sites"] for name in site["name"].split("+")]
    assert len(names) == len(json.loads(compiled.stdout)["sites"])
    measured = qxc(
        "eval", out / "model.onnx", "--text", tiny.evaluation, "--reference", tiny.model,
        "--windows", 4, "--length", 16, "--json",
    )  # fmt: skip
    figures = json.loads(measured.stdout)
    assert figures["windows"] == 4
    assert figures["perplexity"] > 1
    assert figures["kl_divergence"] >= 0


def test_generate_writes_text(tiny, qxc):
    result = qxc("generate", tiny.model, "--prompt", "w1 w2", "--max-new-tokens", 5)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) == 5
    assert "tokens per second" in result.stderr
