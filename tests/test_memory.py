"""A compile holds one part of a model, not the model: what is resident does not grow with it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

WIDTH = 2048
MEGABYTE = 1 << 20


def write_model(path: Path, layers: int) -> None:
    """Layers of 16 MB each, in external data."""
    base = np.random.default_rng(0).standard_normal((WIDTH, WIDTH), dtype=np.float32) / WIDTH**0.5
    nodes, weights = [], []
    with path.with_suffix(".data").open("wb") as file:
        for layer in range(layers):
            tensor = TensorProto(name=f"w{layer}", data_type=1, dims=base.shape, data_location=TensorProto.EXTERNAL)
            place = {"location": path.with_suffix(".data").name, "offset": file.tell(), "length": base.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            file.write(np.roll(base, layer).tobytes())
            weights.append(tensor)
            nodes.append(helper.make_node("MatMul", [f"x{layer}", f"w{layer}"], [f"y{layer}"], name=f"layer{layer}"))
            nodes.append(helper.make_node("Tanh", [f"y{layer}"], [f"x{layer + 1}"]))
    x, y = (helper.make_tensor_value_info(name, 1, ["n", WIDTH]) for name in ("x0", f"x{layers}"))
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


def peak(*arguments: object) -> int:
    """Bytes that a compile holds in memory at most, pages of files not counted, which the system may drop."""
    command = [sys.executable, "-P", "-m", "qxcompiler.cli", "compile", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    largest = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        for line in status.splitlines():
            if line.startswith("RssAnon"):
                largest = max(largest, int(line.split()[1]) * 1024)
        time.sleep(0.02)
    _, error = process.communicate()
    assert process.returncode == 0, error
    return largest


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("quantizer", ["rtn", "gptq"])
def test_memory_does_not_grow_with_the_model(tmp_path, quantizer):
    """A model of 64 MB and one of 512 MB. Not verified: run without the library, a compiled model is decoded whole."""
    samples = tmp_path / "samples.npz"
    np.savez(samples, x0=np.random.default_rng(1).standard_normal((3, 8, WIDTH), dtype=np.float32))
    peaks = []
    for layers in (4, 32):
        model = tmp_path / f"{layers}.onnx"
        write_model(model, layers)
        calibration = ["--calibration", samples] if quantizer == "gptq" else []
        options = [
            "--target",
            "cpu-x86",
            "--weights",
            "int8g128",
            "--head",
            "int8g128",
            "--quantizer",
            quantizer,
            "--no-verify",
        ]
        peaks.append(peak(model, "-o", tmp_path / "out", *options, *calibration))
    assert peaks[1] - peaks[0] < 150 * MEGABYTE, [size // MEGABYTE for size in peaks]
