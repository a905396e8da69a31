"""A compile that was killed goes on from what it had finished, and ends with the bytes of one that was not."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import qxcompiler
from qxcompiler.quantizers import segmentwise
from qxcompiler.staging import WORK
from qxcompiler.work_folder import WorkFolder, fingerprint

OPTIONS = {"weights": "lut3g16", "embedding": "int8g16", "samples": 4, "length": 16}
COMMAND = "qxcompiler.compile(model, 'cpu-x86', out, calibration=text, **options)"
# The child is forked when everything is imported, before any thread is started, so that most of its time is work.
KILLED = f"""
import os, random, signal, sys, time
os.environ["OMP_NUM_THREADS"] = "1"
import torch, onnxruntime
import qxcompiler, qxcompiler.compiler, qxcompiler.evaluation, qxcompiler.report
torch.set_num_threads(1)
model, text, seconds, options = *sys.argv[1:3], float(sys.argv[3]), {OPTIONS}
for seed, out in enumerate(iter(sys.stdin.readline, "")):
    out = out.strip()
    child = os.fork()
    if not child:
        {COMMAND}
        os._exit(0)
    time.sleep(random.Random(seed).uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "report.json"}


def compiled(tiny, out: Path, **options: object) -> dict[str, bytes]:
    qxcompiler.compile(tiny.model, "cpu-x86", out, calibration=tiny.calibration, **{**OPTIONS, **options})
    assert not list(out.glob(".qxc-*"))
    return contents(out)


@pytest.fixture
def count(monkeypatch) -> list[str]:
    """The weights that were quantized, as they are."""
    names: list[str] = []
    original = segmentwise.quantize_weights

    def counted(weights, *arguments):
        names.extend(weight.name for weight in weights)
        return original(weights, *arguments)

    monkeypatch.setattr(segmentwise, "quantize_weights", counted)
    return names


def interrupt(tiny, out: Path, monkeypatch, after: int) -> None:
    """A compile that is interrupted when some weights are done."""
    done = []
    original = WorkFolder.keep

    def keep(self, name, result):
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(name)
        return original(self, name, result)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(WorkFolder, "keep", keep)
        compiled(tiny, out)


@pytest.mark.parametrize("after", [1, 2, 6, 14])
def test_interrupted_after_some_weights(tiny, tmp_path, monkeypatch, count, after):
    whole = compiled(tiny, tmp_path / "whole")
    every = len(count)
    assert every > 14
    interrupt(tiny, tmp_path / "out", monkeypatch, after)
    assert not contents(tmp_path / "out")
    count.clear()
    assert compiled(tiny, tmp_path / "out") == whole
    assert len(count) == every - after


def test_nothing_is_kept_where_nothing_was_finished(tiny, tmp_path, monkeypatch):
    interrupt(tiny, tmp_path / "out", monkeypatch, 0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("other", [{"quantizer": "rtn"}, {"samples": 3}, {"weights": "int4g16"}, {"restart": True}])
def test_work_of_another_compile_is_not_taken(tiny, tmp_path, monkeypatch, count, other):
    whole = compiled(tiny, tmp_path / "whole", **other)
    every = len(count)
    interrupt(tiny, tmp_path / "out", monkeypatch, 6)
    count.clear()
    assert compiled(tiny, tmp_path / "out", **other) == whole
    assert len(count) == every


def test_another_model_or_text(tiny, tmp_path, monkeypatch, count):
    interrupt(tiny, tmp_path / "out", monkeypatch, 6)
    tiny.calibration.write_text(tiny.evaluation.read_text())
    count.clear()
    assert compiled(tiny, tmp_path / "out") == compiled(tiny, tmp_path / "whole")
    assert len(set(count)) * 2 == len(count)


@pytest.mark.parametrize("damage", [b"", b"half", bytes(100)])
def test_a_work_file_that_is_damaged_is_made_again(tiny, tmp_path, monkeypatch, damage):
    interrupt(tiny, tmp_path / "out", monkeypatch, 6)
    (file, *_) = sorted((tmp_path / "out" / WORK).glob("*/*.safetensors"))
    file.write_bytes(damage)
    assert compiled(tiny, tmp_path / "out") == compiled(tiny, tmp_path / "whole")


def test_an_interrupted_command_says_how_to_go_on(tiny, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-P", "-m", "qxcompiler.cli", "compile", str(tiny.model), "--target", "cpu-x86"]
    command += ["-o", str(out), "--calibration", str(tiny.calibration), "--weights", "lut3g16"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while process.poll() is None and not list(out.glob(f"{WORK}/*/*.safetensors")):
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("it was done before it was interrupted")
    assert process.returncode == 130
    assert error.splitlines() == [
        "qxc: what is finished is kept: the same command goes on from there",
        "qxc: error: interrupted: nothing was written",
    ]


@pytest.mark.slow
def test_killed_at_any_moment(tiny, tmp_path):
    """50 times: the folder is the old one or the new one, and another run ends with the bytes of an undisturbed one."""
    old = compiled(tiny, tmp_path / "old", weights="int8g32")
    start = time.perf_counter()
    new = compiled(tiny, tmp_path / "new")
    seconds = 1.2 * (time.perf_counter() - start)
    command = [sys.executable, "-P", "-c", KILLED, str(tiny.model), str(tiny.calibration), str(seconds)]
    statuses, kept = [], 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as killer:
        for index in range(50):
            out = tmp_path / f"out{index // 5}"  # five kills in one folder add up
            if not out.exists():
                shutil.copytree(tmp_path / "old", out)
            killer.stdin.write(f"{out}\n")
            statuses.append(int(killer.stdout.readline()))
            now = contents(out)
            # the model is put in place last: with the new one, everything is new
            whole = new if now["model.onnx"] == new["model.onnx"] else old
            for name in ("model.onnx", *(name for name in whole if name.endswith(".data"))):
                assert now[name] == whole[name]
            kept += bool(list(out.glob(f"{WORK}/*/*.safetensors")))
            if index % 5 == 4:
                assert compiled(tiny, out) == new
    assert set(statuses) <= {-signal.SIGKILL, 0}
    assert statuses.count(-signal.SIGKILL) > 25
    assert kept > 10


def test_a_fingerprint_tells_types_shapes_and_order_apart():
    values = [
        [{"x": np.zeros(4, np.float32)}],
        [{"y": np.zeros(4, np.float32)}],
        [{"x": np.zeros(4, np.int32)}],
        [{"x": np.zeros((2, 2), np.float32)}],
        [{"x": np.zeros(4, np.float32)}, {}],
        [{"x": [np.zeros(4, np.float32)]}],
        [{"x": np.array(["a", "b"], object)}],
        [{"x": np.array(["a", "c"], object)}],
        [],
    ]
    digests = [fingerprint(value) for value in values]
    assert len(set(digests)) == len(values)
    assert digests == [fingerprint(value) for value in values]
