"""A compile holds one part of a model, not the model: what is resident does not grow with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

WIDTH = 1024
MEGABYTE = 1 << 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc"),
]


def write_model(path: Path, layers: int, parts: int) -> None:
    """Residual layers, each with a weight [1024, parts * 1024], in external data."""
    base = np.random.default_rng(0).standard_normal((WIDTH, parts * WIDTH), dtype=np.float32)
    base /= 4 * (WIDTH * parts) ** 0.5  # each layer adds a quarter to what it reads
    nodes = []
    weights = [numpy_helper.from_array(np.array(value), name) for name, value in
               {"shape": [0, parts, WIDTH], "axis": [1]}.items()]  # fmt: skip
    with path.with_suffix(".data").open("wb") as file:
        for layer in range(layers):
            tensor = TensorProto(name=f"w{layer}", data_type=1, dims=base.shape, data_location=TensorProto.EXTERNAL)
            place = {"location": path.with_suffix(".data").name, "offset": file.tell(), "length": base.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            file.write(np.roll(base, layer).data)
            weights.append(tensor)
            x, y, z, sums, update = (f"{name}{layer}" for name in ("x", "y", "z", "sum", "update"))
            nodes += [
                helper.make_node("MatMul", [x, f"w{layer}"], [y], name=f"layer{layer}"),
                helper.make_node("Reshape", [y, "shape"], [z]),
                helper.make_node("ReduceSum", [z, "axis"], [sums], keepdims=0),
                helper.make_node("Tanh", [sums], [update]),
                helper.make_node("Add", [x, update], [f"x{layer + 1}"]),
            ]
    x, y = (helper.make_tensor_value_info(name, 1, ["n", WIDTH]) for name in ("x0", f"x{layers}"))
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


def peak(figure: str, model: Path, weights: str, quantizer: str, *options: str) -> int:
    """The largest figure of /proc/PID/status, in bytes, during a compile to `out` beside the model.

    `VmHWM` is all that was resident, `RssAnon` without the pages of files, which the system may drop.
    """
    arguments = [model, "-o", model.parent / "out", "--target", "cpu-x86", "--weights", weights, "--head", weights,
                 "--quantizer", quantizer, *options]  # fmt: skip
    if quantizer == "gptaq":
        samples = model.parent / "samples.npz"
        np.savez(samples, x0=np.random.default_rng(1).standard_normal((3, 8, WIDTH), dtype=np.float32))
        arguments += ["--calibration", samples]
    command = [sys.executable, "-P", "-m", "qxcompiler.cli", "compile", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    largest = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        for line in status.splitlines():
            if line.startswith(figure):
                largest = max(largest, int(line.split()[1]) * 1024)
        time.sleep(0.02)
    _, error = process.communicate()
    assert process.returncode == 0, error
    return largest


@pytest.mark.parametrize("quantizer", ["rtn", "gptaq"])
def test_memory_does_not_grow_with_the_model(tmp_path, quantizer):
    """A model of 64 MB and one of 512 MB. Not verified: that holds parts of 256 MB, and a small model whole."""
    peaks = []
    for layers in (4, 32):
        write_model(tmp_path / f"{layers}.onnx", layers, 4)
        peaks.append(peak("RssAnon", tmp_path / f"{layers}.onnx", "int8g128", quantizer, "--no-verify"))
    assert peaks[1] - peaks[0] < 150 * MEGABYTE, [size // MEGABYTE for size in peaks]


@pytest.fixture(scope="module")
def model_of_4_gb(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    if shutil.disk_usage(folder).free < 7 << 30:
        pytest.skip("needs 7 GiB of disk")
    write_model(folder / "model.onnx", 64, 16)
    yield folder / "model.onnx"
    shutil.rmtree(folder)


@pytest.mark.skipif(
    tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 21), reason="an older onnxruntime runs models whole"
)
@pytest.mark.parametrize("quantizer", ["rtn", "gptaq"])
def test_a_model_of_4_gb_compiles_in_2_gb(model_of_4_gb, quantizer):
    """Verified, with the library and without; pages of files counted, which a limit would make the system drop."""
    resident = peak("VmHWM", model_of_4_gb, "int4g128", quantizer)
    report = json.loads((model_of_4_gb.parent / "out" / "report.json").read_text())
    assert report["bytes_before"] > 4e9
    assert len(report["sites"]) == 64
    verification = report["verification"]
    assert all(verification[how]["x64"]["cosine_similarity"] > 0.9 for how in ("outputs", "without_library"))
    assert resident < 2e9
    assert report["peak_memory_bytes"] == pytest.approx(resident, rel=0.01)
