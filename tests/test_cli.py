"""The command line at its edges: no arguments, arguments out of range, outputs that cannot be written, no memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qxcompiler import cli

COMMAND = (sys.executable, "-P", "-m", "qxcompiler.cli")


def run(*arguments: object, **settings: object) -> subprocess.CompletedProcess[bytes]:
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings
    return subprocess.run([*COMMAND, *arguments], timeout=120, **settings)


def test_no_arguments_show_the_help(qxc):
    result = qxc()
    assert result.returncode == 0
    assert "compile" in result.stdout
    assert not result.stderr


@pytest.mark.parametrize("seed", ["99999999999999999999", "-1", "1e3", str(2**63)])
def test_seeds_out_of_range(tiny, qxc, seed):
    for arguments in (
        ("compile", tiny.model, "--target", "cpu-x86", "--quantizer", "rtn", "-o", tiny.folder / "out"),
        ("generate", tiny.model, "--prompt", "w1"),
    ):
        result = qxc(*arguments, "--seed", seed)
        assert result.returncode == 2
        assert "--seed" in result.stderr
        assert len(result.stderr.splitlines()) == 1, result.stderr
    assert not (tiny.folder / "out").exists()


def test_the_largest_seed(tiny, qxc):
    seed = 2**63 - 1
    arguments = ("--prompt", "w1", "--temperature", 1, "--max-new-tokens", 2, "--seed", seed)
    assert qxc("generate", tiny.model, *arguments).returncode == 0


def test_a_reader_that_has_read_enough():
    read, write = os.pipe()
    os.close(read)
    result = run("targets", stdout=write)
    os.close(write)
    assert result.returncode == 0
    assert not result.stderr


def test_an_output_that_is_full():
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        result = run("targets", stdout=full)
    assert result.returncode == 2
    assert result.stderr.startswith(b"qxc: error: standard output: cannot be written (No space left on device)")
    assert result.stderr.count(b"\n") == 1


def test_no_standard_output():
    for close in (1, 2):
        result = run("targets", preexec_fn=lambda: os.close(close))  # noqa: B023
        assert result.returncode == 0, result.stderr
        assert not result.stderr


def test_arguments_that_are_not_utf8(tiny, qxc):
    for arguments in (
        ("inspect", "\udcff.onnx"),
        ("generate", tiny.model, "--prompt", "w1 \udcff"),
        ("compile", tiny.model, "--target", "cpu-x86", "--quantizer", "rtn", "-o", tiny.folder / "out\udcff"),
    ):
        result = qxc(*arguments)
        assert result.returncode == 2
        assert "\\udcff" in result.stderr
        assert "is not UTF-8" in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_a_terminal_that_is_not_utf8(tiny):
    name = tiny.folder / "Größe 日本.onnx"
    tiny.model.rename(name)
    result = run("inspect", name.name, cwd=tiny.folder, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0, result.stderr
    result = run("inspect", "日.onnx", cwd=tiny.folder, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert result.stderr == b"qxc: error: \\u65e5.onnx: no such file: check the path\n"


def test_names_do_not_command_the_terminal(tiny, qxc):
    result = qxc("inspect", tiny.folder / "\x1b[31mred.onnx")
    assert result.returncode == 2
    assert "\\x1b[31mred.onnx: no such file" in result.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "not enough memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
            "not enough memory",
        ),
        (RecursionError("maximum recursion depth exceeded"), "nested too deep"),
    ],
)
def test_what_the_machine_cannot_do(tiny, qxc, monkeypatch, error, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("qxcompiler.report.inspect", fail)
    result = qxc("inspect", tiny.model)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert said in result.stderr


def test_a_bug_shows_where_it_is(tiny, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a bug")

    monkeypatch.setattr("qxcompiler.report.inspect", fail)
    with pytest.raises(AssertionError, match="a bug"):
        cli.main(["inspect", str(tiny.model)])


def test_hangups_that_are_ignored_stay_ignored(qxc):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert qxc("targets").returncode == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_checkout_is_importable():
    program = (
        "import qxcompiler, qxcompiler.passes; print(qxcompiler.__file__); qxcompiler.session; qxcompiler.ops_library()"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == root / "qxcompiler"


def test_verbose_says_what_every_pass_did(tiny):
    arguments = ("compile", tiny.model, "--target", "cpu-x86", "-o", tiny.folder / "out", "--quantizer", "rtn", "-v")
    lines = run(*map(str, arguments)).stderr.decode().splitlines()
    said = [line for line in lines if line.startswith("qxc: ") and not line.startswith("qxc: warning")]
    assert any("16 sites" in line and "2 query" in line for line in said)
    (packed,) = (line for line in said if line.startswith("qxc: PackSites: "))
    assert "-15 MatMul" in packed
    assert "qxc: FuseBias: nothing to do" in said
    assert "qxc: FuseSharedInput: -2 MatMulLut3, +2 Split" in said
    assert sum(" by rtn, error " in line for line in said) == 15


def test_inspect_predicts_what_a_model_costs(tiny, qxc):
    shown = qxc("inspect", tiny.model, "--target", "npu-int8", "--context", "7")
    assert shown.returncode == 0, shown.stderr
    assert "predicted on npu-int8" in shown.stdout
    assert "decode at context 7" in shown.stdout and "prefill of 7" in shown.stdout
    decode, prefill = json.loads(qxc("inspect", tiny.model, "--target", "cpu-x86", "--json").stdout)["predicted"]
    assert decode["phase"] == "decode at context 512" and prefill["phase"] == "prefill of 512"
    assert decode["tokens_per_second"] == pytest.approx(1 / decode["seconds"])
    assert qxc("inspect", tiny.model).stdout.count("predicted") == 0


@pytest.mark.parametrize("size", ["height", "=3", "height=0", "height=-1", "height=2.5", "height=9999999999"])
def test_a_size_that_is_none_is_refused(tiny, qxc, size):
    result = qxc("inspect", tiny.model, "--target", "npu-int8", "--size", size)
    assert result.returncode == 2
    assert "not a size: write NAME=N" in result.stderr


def test_a_descriptor_that_says_too_little_predicts_nothing(tiny, qxc):
    path = tiny.folder / "mine.yaml"
    path.write_text("name: mine\ninherit: npu-int8\nvector_unit: null\n")
    result = qxc("inspect", tiny.model, "--target", path)
    assert result.returncode == 2
    assert "target mine: has no section `vector_unit`, without which no cost can be predicted" in result.stderr
