"""What runs a compiled model needs none of the compiler, and installs alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

import qxcompiler

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
COMPILERS = ("torch", "onnx", "onnx_ir", "onnxscript", "ml_dtypes", "scipy", "safetensors")
WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"{{name}} is not for those who only run a model")

sys.meta_path.insert(0, Missing())
"""
GENERATE = """
import sys, json
from qxcompiler_runtime import bench, generate, session
path = sys.argv[1]
assert session(path).get_inputs()
assert bench(path, prompt_tokens=2, new_tokens=1, repetitions=1, threads=[1]).rates
print(json.dumps(generate(path, "w3 w1 w4 w1 w5", max_new_tokens=8).tokens))
"""


@pytest.fixture
def compiled(tiny: SimpleNamespace, tmp_path: Path) -> Path:
    qxcompiler.compile(tiny.model, "cpu-x86", tmp_path / "out", weights="int4g16", quantizer="rtn")
    return tmp_path / "out" / "model.onnx"


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_models_run_without_the_compiler(compiled: Path) -> None:
    script = WITHOUT.format(names={*COMPILERS, "pydantic", "rich", "typer", "qxcompiler"}) + GENERATE
    expected = qxcompiler.generate(compiled, "w3 w1 w4 w1 w5", max_new_tokens=8).tokens
    assert json.loads(run(sys.executable, "-c", script, compiled)) == expected


@pytest.mark.parametrize("command", ["generate", "bench"])
def test_commands_that_run_models_import_no_compiler(command: str, compiled: Path) -> None:
    """PyTorch's threads would spin beside those of onnxruntime."""
    options = ["--prompt", "w1"] if command == "generate" else ["--prompt-tokens", "3", "--repetitions", "1"]
    script = WITHOUT.format(names=set(COMPILERS)) + "from qxcompiler.cli import main; main(sys.argv[1:])"
    run(sys.executable, "-c", script, command, compiled, *options)


def test_what_is_missing_is_named(compiled: Path) -> None:
    script = WITHOUT.format(names={"tokenizers"}) + GENERATE
    done = subprocess.run([sys.executable, "-c", script, compiled], capture_output=True, text=True, check=False)
    assert "the package tokenizers: is not installed: pip install 'qxcompiler-runtime[generate]'" in done.stderr


def packed_again(folder: Path) -> Path:
    """The wheel that was installed, made of its files."""
    found = metadata.distribution("qxcompiler-runtime")
    files = [file for file in found.files or [] if file.suffix != ".pyc" and ".." not in file.parts]
    if not any(file.name == "generation.py" for file in files):
        pytest.skip("qxcompiler-runtime is installed in place, as `make dev` does")
    wheel = folder / f"qxcompiler_runtime-{found.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in files:
            if file.name not in ("direct_url.json", "INSTALLER", "REQUESTED"):
                archive.write(str(file.locate()), str(file))
    return wheel


@pytest.mark.slow
def test_the_runtime_alone_writes_text(compiled: Path, tmp_path: Path) -> None:
    """In an environment that has nothing else."""
    expected = qxcompiler.generate(compiled, "w3 w1 w4 w1 w5", max_new_tokens=8).tokens
    wheel = packed_again(tmp_path)
    venv.create(tmp_path / "empty", with_pip=True)
    python = tmp_path / "empty" / "bin" / "python"
    pip = (python, "-I", "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "install", "--constraint", CONSTRAINTS, f"{wheel}[generate]")
    assert "torch" not in (installed := run(*pip, "list", "--format=freeze")) and "onnx==" not in installed
    assert json.loads(run(python, "-I", "-c", GENERATE, compiled)) == expected
