"""Faults of disks and processes: whole outputs or none, one clear line, and readers that are never disturbed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import qxcompiler
from qxcompiler import staging
from qxcompiler.errors import ModelError, OutputError, UsageError
from qxcompiler.graph import load_model
from qxcompiler.staging import check_sources, output_folder, staged

COMMAND = (sys.executable, "-P", "-m", "qxcompiler.cli")
ROUNDED = ("--target", "cpu-x86", "--quantizer", "rtn", "--weights", "int4g16")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model of one layer that is worth packing."""
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    x, y = (helper.make_tensor_value_info(name, 1, ["b", 64]) for name in "xy")
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weights, "w")])
    path = tmp_path / "source.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def compile_in_process(
    source: Path, out: object, *options: str, **settings: object
) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "compile", str(source), "-o", str(out), *ROUNDED, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("qxc: error: ")
    return line


class TestStaged:
    """The block that everything is written in."""

    def write(self, output: Path, **files: str) -> None:
        with staged(output) as stage:
            for name, text in files.items():
                (stage / name.replace("__", ".")).write_text(text)

    def test_the_stage_lies_within_the_folder(self, tmp_path):
        out = tmp_path / "deep/out"
        with staged(out) as stage:
            assert stage.parent == out
            (stage / "a").write_text("whole")
            assert names(tmp_path) == {"deep"}
        assert contents(out) == {"a": b"whole"}

    def test_a_failure_leaves_nothing(self, tmp_path):
        with pytest.raises(ZeroDivisionError), staged(tmp_path / "deep/out") as stage:
            (stage / "a").write_text("half")
            1 / 0  # noqa: B018
        assert not names(tmp_path)

    def test_a_failure_leaves_what_was_there(self, tmp_path):
        self.write(tmp_path / "out", a="first")
        with pytest.raises(ZeroDivisionError), staged(tmp_path / "out") as stage:
            (stage / "a").write_text("second")
            1 / 0  # noqa: B018
        assert contents(tmp_path / "out") == {"a": b"first"}

    def test_two_at_once(self, tmp_path):
        out = tmp_path / "out"
        with staged(out) as stage:
            (stage / "a").write_text("first")
            with pytest.raises(OutputError, match="out: another process is writing it"), staged(out):
                raise AssertionError
            assert (stage / "a").exists()
        self.write(out, a="second")
        assert contents(out) == {"a": b"second"}

    def test_what_a_killed_process_left_is_removed(self, tmp_path):
        out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
        (out / ".qxc-dead").mkdir(parents=True)
        (out / ".qxc-dead/model.onnx").write_text("half")
        elsewhere.mkdir()
        (elsewhere / "mine").write_text("mine")
        (out / ".qxc-link").symlink_to(elsewhere)
        (out / ".other").mkdir()
        self.write(out, a="whole")
        assert names(out) == {"a", ".other", ".qxc-link"}
        assert names(elsewhere) == {"mine"}

    def test_a_file_system_without_locks(self, tmp_path, monkeypatch):
        def flock(*_):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", flock)
        (tmp_path / "out/.qxc-perhaps-alive").mkdir(parents=True)
        self.write(tmp_path / "out", a="whole")
        assert names(tmp_path / "out") == {"a", ".qxc-perhaps-alive"}

    def test_what_cannot_be_replaced_is_found_before_the_work(self, tmp_path):
        out = tmp_path / "out"
        (out / "model.onnx").mkdir(parents=True)
        with pytest.raises(OutputError, match=r"model.onnx: is a folder"), staged(out, ["model.onnx"]):
            raise AssertionError
        (out / "model.onnx").rmdir()
        (out / "model.onnx").touch(0o444)
        with pytest.raises(OutputError, match=r"model.onnx: is read-only"), staged(out, ["model.onnx"]):
            raise AssertionError
        assert names(out) == {"model.onnx"}

    def test_what_cannot_be_replaced_is_found_before_anything_is(self, tmp_path):
        out = tmp_path / "out"
        self.write(out, a="first")
        (out / "b").mkdir()
        with pytest.raises(OutputError, match="b: is a folder"):
            self.write(out, a="second", b="second")
        assert (out / "a").read_text() == "first"

    def test_a_move_that_fails_is_taken_back(self, tmp_path, monkeypatch):
        out = tmp_path / "out"
        self.write(out, a="first", c="first")
        replace = Path.replace

        def fails_at_c(path: Path, goal: Path):
            if path.name == "c" and path.read_text() == "second":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return replace(path, goal)

        monkeypatch.setattr(Path, "replace", fails_at_c)
        with pytest.raises(OutputError, match=r"out: cannot be written .No space left on device."):
            self.write(out, a="second", b="second", c="second")
        assert contents(out) == {"a": b"first", "c": b"first"}

    def test_a_folder_that_vanishes(self, tmp_path):
        out = tmp_path / "out"
        with pytest.raises(OutputError, match="out: vanished while it was written"), staged(out) as stage:
            shutil.rmtree(out)
            (stage / "a").write_text("lost")
        assert not out.exists()

    def test_a_folder_that_is_replaced_by_a_file(self, tmp_path):
        out = tmp_path / "out"
        with pytest.raises(OutputError, match="out: vanished while it was written"), staged(out) as stage:
            out.rename(tmp_path / "moved")
            out.write_text("mine")
            (stage / "a").write_text("lost")
        assert out.read_text() == "mine"
        assert not names(tmp_path / "moved")

    def test_an_unreadable_source_is_not_blamed_on_the_output(self, tmp_path):
        with pytest.raises(OutputError, match="source: cannot be read"), staged(tmp_path / "out"):
            (tmp_path / "source").read_text()

    def test_a_link_to_another_folder(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "out").symlink_to(tmp_path / "real")
        self.write(tmp_path / "out", a="whole")
        assert contents(tmp_path / "real") == {"a": b"whole"}
        (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
        with pytest.raises(OutputError, match="dangling: cannot be written"):
            self.write(tmp_path / "dangling", a="lost")

    def test_models_come_last_and_their_old_data_goes(self, tmp_path, monkeypatch):
        monkeypatch.setattr(staging, "_GRACE", 0)
        out = tmp_path / "out"
        kept = ("other.onnx.0123456789ab.data", "model.onnx.data.bak", "xmodel.onnx.data")
        out.mkdir()
        for name in ("model.onnx", "model.onnx.data", "model.onnx.0123456789ab.data", *kept):
            (out / name).touch()
        order = []
        replace = Path.replace
        monkeypatch.setattr(Path, "replace", lambda path, goal: (order.append(path.name), replace(path, goal)))
        self.write(out, **{"model__onnx": "new", "model__onnx__ba9876543210__data": "new", "z": "new"})
        assert order == ["model.onnx.ba9876543210.data", "z", "model.onnx"]
        assert names(out) == {"model.onnx", "model.onnx.ba9876543210.data", "z", *kept}


def test_an_output_without_a_name(source, qxc):
    with pytest.raises(UsageError, match="the output: has no name: name a folder"):
        output_folder("")
    with pytest.raises(UsageError, match="has no name"):
        qxcompiler.compile(source, "cpu-x86", "", quantizer="rtn")
    result = qxc("compile", source, "-o", "", *ROUNDED)
    assert result.stderr == "qxc: error: the output: has no name: name a folder with -o\n"


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "model.onnx.0123456789ab.data", "plan.yaml"])
def test_sources_are_never_lost(tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).touch()
    (tmp_path / "link").symlink_to(out / name)
    (tmp_path / "out2").symlink_to(out)
    written = ("model.onnx", "plan.yaml")
    for path, folder in ((out / name, out), (tmp_path / "link", out), (out / name, tmp_path / "out2")):
        with pytest.raises(UsageError, match="would be overwritten"):
            check_sources([path], folder, written)
    check_sources([tmp_path / name, out / "mine.onnx", out / "mine.onnx.data"], out, written)


def test_loads_while_a_folder_is_written_anew(source, tmp_path):
    """A reader finds a whole model at any moment: the old one or the new one, with its own weights."""
    out = tmp_path / "out"
    x = np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)
    formats = ["int4g16", "int8g16", "int3g16"]
    expected = []
    for weights in formats:
        folder = out if weights == formats[-1] else tmp_path / weights
        qxcompiler.compile(source, "cpu-x86", folder, weights=weights, head=weights, quantizer="rtn")
        expected.append(qxcompiler.session(folder / "model.onnx").run(None, {"x": x})[0])

    stop, failures, loads = threading.Event(), [], 0

    def read() -> None:
        nonlocal loads
        while not stop.is_set():
            try:
                y = qxcompiler.session(out / "model.onnx").run(None, {"x": x})[0]
                load_model(out / "model.onnx")
                if not any(np.array_equal(y, known) for known in expected):
                    failures.append("weights of another model")
            except Exception as error:
                failures.append(str(error))
            loads += 1

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for weights in formats:
            qxcompiler.compile(source, "cpu-x86", out, weights=weights, head=weights, quantizer="rtn")
    finally:
        stop.set()
        reader.join()
    assert loads > 20
    assert not failures
    assert len(list(out.glob("*.data"))) == 1  # those of earlier models are removed


def test_another_file_system(source, tmp_path):
    elsewhere = Path("/dev/shm")
    if not os.access(elsewhere, os.W_OK) or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system to write to")
    out = elsewhere / f"qxc-test-{os.getpid()}"
    try:
        (tmp_path / "out").symlink_to(out)
        out.mkdir()
        qxcompiler.compile(source, "cpu-x86", tmp_path / "out", weights="int4g16", quantizer="rtn")
        assert {"model.onnx", "plan.yaml", "report.json"} <= names(out)
        shutil.rmtree(out)
        qxcompiler.compile(source, "cpu-x86", out, weights="int4g16", quantizer="rtn")
        assert "model.onnx" in names(out)
    finally:
        shutil.rmtree(out, ignore_errors=True)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("a file system of its own cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_mount_point(source, small_disk):
    """As a container's volume is: nothing beside it lies on the same file system."""
    qxcompiler.compile(source, "cpu-x86", small_disk, weights="int4g16", quantizer="rtn")
    assert {"model.onnx", "plan.yaml", "report.json"} <= names(small_disk)


@pytest.fixture
def unprivileged(tmp_path_factory):
    """Be somebody who cannot write everywhere, and a folder of theirs."""
    folder = tmp_path_factory.mktemp("theirs")
    if os.geteuid():
        yield folder
        return
    os.chown(folder, 65534, 65534)
    for above in folder.parents[:3]:
        above.chmod(above.stat().st_mode | 0o011)
    os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(0)


def test_a_writable_folder_in_a_read_only_one(unprivileged):
    for name in ("out", "closed"):
        (unprivileged / name).mkdir()
    (unprivileged / "closed").chmod(0o555)
    unprivileged.chmod(0o555)
    try:
        with staged(unprivileged / "out") as stage:
            (stage / "a").write_text("whole")
        assert contents(unprivileged / "out") == {"a": b"whole"}
        for name in ("closed", "new", "new/deep"):
            with pytest.raises(OutputError, match=r"cannot be written .Permission denied"), staged(unprivileged / name):
                raise AssertionError
    finally:
        unprivileged.chmod(0o755)


def test_a_disk_that_fills(source, small_disk):
    out = small_disk / "out"
    qxcompiler.compile(source, "cpu-x86", out, weights="int4g16", quantizer="rtn")
    before = contents(out)
    (small_disk / "ballast").write_bytes(bytes(30_000))
    while True:
        try:
            with (small_disk / "ballast").open("ab") as file:
                file.write(bytes(4096))
        except OSError:
            break
    line = one_line(compile_in_process(source, out, "--weights", "int8g16"))
    assert "No space left on device" in line
    assert contents(out) == before


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(100)


def write_others(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def replace_by_another(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[::-1])
    other.replace(path)


@pytest.mark.parametrize("name", ["source.onnx", "weights.bin"])
@pytest.mark.parametrize("change", [cut, write_others, replace_by_another, Path.unlink])
def test_a_source_that_changes_while_it_is_read(source, tmp_path, name, change):
    onnx.save(onnx.load(source), source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    out = tmp_path / "out"
    changed = []

    def change_in_the_middle(items, _):
        if not changed:
            change(tmp_path / name)
            changed.append(name)
        return items

    with pytest.raises(ModelError, match=rf"{name}: (was changed while it was read|.*cannot be read|.*missing)"):
        qxcompiler.compile(source, "cpu-x86", out, weights="int4g16", quantizer="rtn", track=change_in_the_middle)
    assert changed
    assert not out.exists()


def test_two_compiles_at_once(source, tmp_path):
    out = tmp_path / "out"
    with staged(out):
        start = time.monotonic()
        assert "out: another process is writing it" in one_line(compile_in_process(source, out))
        assert time.monotonic() - start < 60
    assert not names(out)
    assert compile_in_process(source, out).returncode == 0


def test_a_killed_compile_blocks_nobody(source, tmp_path):
    out = tmp_path / "out"
    code = (
        "import sys, time; from pathlib import Path; from qxcompiler.staging import staged\n"
        "with staged(Path(sys.argv[1])) as stage: (stage / 'model.onnx').touch(); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-P", "-c", code, str(out)])
    deadline = time.monotonic() + 60
    while not list(out.glob(".qxc-*/model.onnx")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(out.glob(".qxc-*"))
    qxcompiler.compile(source, "cpu-x86", out, weights="int4g16", quantizer="rtn")
    assert not list(out.glob(".qxc-*"))
    onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
