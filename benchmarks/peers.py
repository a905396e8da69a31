"""Side by side with other quantizers: the same weights, calibration samples and windows, bits counted alike.

    python benchmarks/peers.py [METHOD:FORMAT ...] --calibration TEXT --evaluation TEXT [--model MODEL.onnx]

A method is one of `benchmarks/peer_quantizers.py`, `qxc-` and a quantizer of ours (`qxc-gptq:int3g128a`), or `qxc-` and
a recipe (`qxc-balanced:lut3g128`); a peer's format is `int3g128a` with other bits and groups. Each package of a peer is
in a virtual environment of its name in the folder of environments; `make bench-peers` makes them. The peers get the
weights of the ONNX file, by the names of a Llama export, and the windows of text that a compile of ours would
calibrate on. What they return is written into that same ONNX file, and measured as `qxc eval` does; head and embedding
stay as they are. A folder keeps the peers' weights and the original's logits (100 MB a window), which are not made
again: another model or calibration needs another folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx_ir as ir
import torch
import typer
from quality import SMOLLM2, other_kinds, qxc
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

import qxcompiler
from demo import smollm2
from qxcompiler.calibration.samples import input_specs, load_samples
from qxcompiler.companions import COMPANIONS, CONFIGURATIONS, copy_files
from qxcompiler.evaluation.language import evaluate_language
from qxcompiler.evaluation.running import Runner

METHODS = ("qxc-gptq", "auto-round-light", "auto-round", "gptqmodel-gptq", "gptqmodel-gptaq", "brevitas-qronos")
ROWS = [f"{method}:int{bits}g128a" for bits in (3, 4) for method in METHODS]
ROWS += ["qxc-gptq:lut3g128", "qxc-balanced:lut3g128"]
PACKAGES = ("auto-round", "gptqmodel", "brevitas")
RECIPES = ("fast", "balanced", "best")
SCALE_BITS = 16
HELD_BACK = 2  # samples that a compile reads beyond those that it calibrates on


def products(graph: ir.Graph) -> Iterator[tuple[str, ir.Value]]:
    """The weights [in, out] of linear layers, by what transformers calls them."""
    for node in graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and weight.is_initializer() and node.name:
            yield node.name.strip("/").rpartition("/")[0].replace("/", ".") + ".weight", weight


def hugging_face_folder(path: Path, calibration: Path, samples: int, folder: Path) -> None:
    """Write the weights of an ONNX file and its calibration samples for transformers."""
    model = ir.load(path)
    initializers = {name: value for name, value in model.graph.initializers.items() if name.startswith("model.")}
    weights = {name: torch.from_numpy(value.const_value.numpy().copy()) for name, value in initializers.items()}
    weights |= {name: torch.from_numpy(value.const_value.numpy().T.copy()) for name, value in products(model.graph)}
    folder.mkdir(parents=True, exist_ok=True)
    copy_files(path.parent, folder, (*CONFIGURATIONS, *COMPANIONS))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = load_samples(calibration, input_specs(model), path, samples=samples + HELD_BACK)[:samples]
    ids = torch.stack([torch.from_numpy(sample["input_ids"][0]) for sample in loaded])
    save_file({"ids": ids}, folder / "calibration.safetensors")


def replace_weights(path: Path, quantized: dict[str, torch.Tensor], folder: Path) -> Path:
    """Write the ONNX file with other weights."""
    model = ir.load(path)
    replaced = set()
    for name, weight in products(model.graph):
        if name in quantized:
            weight.const_value = ir.tensor(quantized[name].T.contiguous().numpy(), name=weight.name)
            replaced.add(name)
    assert replaced == set(quantized), sorted(set(quantized) - replaced)
    ir.external_data.load_to_model(model)
    ir.save(model, folder / path.name)
    copy_files(path.parent, folder, (*CONFIGURATIONS, *COMPANIONS))
    return folder / path.name


class Remembered(Runner):
    """A model that computes the logits of a window once, and keeps them in a folder."""

    def __init__(self, model: Path, folder: Path) -> None:
        super().__init__(model)
        self.folder = folder

    def run(self, sample: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        file = self.folder / f"{hashlib.sha256(sample['input_ids'].tobytes()).hexdigest()[:16]}.npy"
        if not file.exists():
            partial = file.with_suffix(".partial.npy")
            np.save(partial, super().run(sample, outputs)[0])
            partial.replace(file)
        return [np.load(file)]


def measure(path: Path, reference: Runner, text: Path, windows: int) -> str:
    """Perplexity over the reference's, divergence, and how often both find the same token most likely."""
    model = Runner(path)
    samples = load_samples(text, model.inputs, path, samples=windows)
    found = evaluate_language(model, reference, [(sample, sample) for sample in samples])
    assert found.reference_perplexity is not None
    ratio = found.perplexity / found.reference_perplexity
    return f"{ratio:.3f}, {found.kl_divergence:.3f}, {found.top1_agreement:.3f}"


def bits_per_weight(quantized: dict[str, torch.Tensor], bits: int, group: int) -> float:
    """Codes, and a scale and a zero point a group, over the weights; in every 16th row it is seen that a group has no
    more values than these bits allow."""
    stored = numbers = 0
    for name, weight in quantized.items():
        groups = weight[::16].split(group, dim=1)
        most = max(int((part.sort(dim=1).values.diff(dim=1) != 0).sum(1).max()) + 1 for part in groups)
        assert most <= 2**bits, f"{name}: {most} values in a group"
        stored += weight.numel() * bits + len(weight) * len(groups) * (SCALE_BITS + bits)
        numbers += weight.numel()
    return stored / numbers


def peer(method: str, weights: str, environments: Path, source: Path, folder: Path) -> dict[str, Any]:
    """Let somebody else's quantizer do it: where its weights are, with bits, seconds, bytes of memory and version."""
    found = re.fullmatch(r"int(\d)g(\d+)a", weights)
    package = next((name for name in PACKAGES if method.startswith(name)), None)
    if found is None or package is None:
        raise typer.BadParameter(f"{method}:{weights}")
    bits, group = map(int, found.groups())
    file = folder / f"{method}-{weights}.safetensors"
    if not file.with_suffix(".json").exists():
        script = Path(__file__).with_name("peer_quantizers.py")
        command = [environments / package / "bin" / "python", "-P", script, method, bits, group, source, file]
        with file.with_suffix(".log").open("w") as log:
            environment = os.environ | {"HF_HUB_OFFLINE": "1"}
            environment.pop("PYTHONPATH", None)
            subprocess.run(list(map(str, command)), stdout=log, stderr=log, check=True, env=environment)
    figures, quantized = json.loads(file.with_suffix(".json").read_text()), load_file(file)
    return figures | {"bits": bits_per_weight(quantized, bits, group), "weights": quantized}


def ours(method: str, weights: str, model: Path, calibration: Path, samples: int, out: Path) -> dict[str, Any]:
    """Compile: bits, seconds, bytes of memory and version."""
    name = method.removeprefix("qxc-")
    start = time.perf_counter()
    report = qxc(
        "compile", model, "--target", "cpu-x86", "-o", out, "--weights", weights, "--activations", "a16",
        "--recipe" if name in RECIPES else "--quantizer", name, "--keep", "^(head|embedding)$",
        *(() if name in RECIPES else ("--samples", samples)), "--calibration", calibration,
    )  # fmt: skip
    bits, memory = report["quantized_bits_per_weight"], report["peak_memory_bytes"]
    return {"bits": bits, "seconds": time.perf_counter() - start, "memory": memory, "version": ""}


def main(
    calibration: Annotated[Path, typer.Option(help="A text.")],
    evaluation: Annotated[Path, typer.Option(help="Another part of it.")],
    rows: Annotated[list[str], typer.Argument()] = ROWS,
    model: Path = SMOLLM2,
    environments: Annotated[Path, typer.Option(help="Holds a virtual environment a package.")] = Path(".cache/peers"),
    folder: Annotated[Path, typer.Option(help="Keeps what is not made again.")] = Path(".cache/peers/quantized"),
    samples: int = 48,
    windows: int = 40,
) -> None:
    """Quantize and measure each row, and print a table."""
    if model == SMOLLM2 and not model.exists():
        qxcompiler.export(smollm2(), model.parent)
    hugging_face_folder(model, calibration, samples, folder / "original")
    reference = Remembered(model, folder / "original")
    with tempfile.TemporaryDirectory() as scratch:
        texts = {evaluation.stem: evaluation, "Python's reference": other_kinds(Path(scratch))["Python's reference"]}
        table = Table("method", "bits per weight", *(f"{name}: ratio, KL, top-1" for name in texts), "s", "memory GB")
        for row in rows:
            method, _, weights = row.partition(":")
            with tempfile.TemporaryDirectory() as out:
                try:
                    if method.startswith("qxc-"):
                        figures = ours(method, weights, model, calibration, samples, Path(out))
                        changed = Path(out, "model.onnx")
                    else:
                        figures = peer(method, weights, environments, folder / "original", folder)
                        changed = replace_weights(model, figures["weights"], Path(out))
                except (subprocess.CalledProcessError, FileNotFoundError) as error:
                    table.add_row(row, "", f"failed: {error}")
                    continue
                cells = [measure(changed, reference, text, windows) for text in texts.values()]
            seconds, memory = f"{figures['seconds']:.0f}", f"{figures['memory'] / 1e9:.1f}"
            table.add_row(f"{row} {figures['version']}", f"{figures['bits']:.3f}", *cells, seconds, memory)
            print(row, *cells, seconds, memory, file=sys.stderr)
    Console(width=180).print(table)


if __name__ == "__main__":
    typer.run(main)
