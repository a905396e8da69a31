"""What is installed, which kernels this processor can run, and whether each of them computes what it should."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from importlib import metadata

import numpy as np
import onnxruntime
from pydantic import BaseModel

from qxcompiler import __version__
from qxcompiler.errors import QxcError
from qxcompiler_runtime import ops_library

__all__ = ["Diagnosis", "KernelCheck", "diagnose", "instruction_sets", "versions"]

_PACKAGES = ("numpy", "onnx", "onnx-ir", "torch", "transformers", "optimum-onnx")
_FORMATS = (
    *(f"int{bits}g64{a}" for bits in (2, 3, 4, 5, 6, 8) for a in ("", "a")),
    *(f"lut{bits}g64{t}" for bits in (2, 3, 4) for t in ("", "t")),
    *("mxfp4", "mxfp6e2m3", "mxfp6e3m2", "mxfp8e4m3", "mxfp8e5m2"),
)
_TOLERANCE = 1e-4  # of a16, relative L2; what the kernels are held to in the tests is half of it


class KernelCheck(BaseModel):
    """The operators with the kernels of one instruction set, beside their definition.

    Attributes:
        instruction_set: such as `avx512`.
        products: how many were compared: every format, with 8-bit, 16-bit and float activations.
        largest_error: relative L2 error of the worst; None where they could not be run.
        problem: what is wrong, if anything is.
    """

    instruction_set: str
    products: int = 0
    largest_error: float | None = None
    problem: str | None = None


class Diagnosis(BaseModel):
    """What `qxc doctor` prints.

    Attributes:
        versions: of the packages that matter, and of Python; None for one that is not installed.
        library: the operators' file.
        kernels: a check for every instruction set that the processor has, the one that sessions use first.
    """

    versions: dict[str, str | None]
    library: str
    kernels: list[KernelCheck]

    @property
    def sound(self) -> bool:
        """Whether every check went well."""
        return bool(self.kernels) and not any(check.problem for check in self.kernels)


def versions() -> dict[str, str | None]:
    """The version of each package that matters, None where it is not installed."""
    found: dict[str, str | None] = {"qxcompiler": __version__, "python": sys.version.split()[0]}
    found["onnxruntime"] = onnxruntime.__version__  # installed under one of several names
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def instruction_sets() -> list[str]:
    """Those whose kernels are built and run on this processor, the best first: what sessions use by default.

    Raises:
        QxcError: the operators are not built.
    """
    library = ctypes.CDLL(str(ops_library()))
    library.qxc_kernels_at.restype = ctypes.c_void_p
    library.qxc_kernels_at.argtypes = [ctypes.c_int32]
    library.qxc_kernels_name.restype = ctypes.c_char_p
    library.qxc_kernels_name.argtypes = [ctypes.c_void_p]
    names: list[str] = []
    while kernels := library.qxc_kernels_at(len(names)):
        names.append(library.qxc_kernels_name(kernels).decode())
    return names


def diagnose() -> Diagnosis:
    """Look at the installation, and run each set of kernels in a process of its own.

    Raises:
        QxcError: the operators are not built.
    """
    return Diagnosis(
        versions=versions(),
        library=str(ops_library()),
        kernels=[_check_in_process(name) for name in instruction_sets()],
    )


def _check_in_process(instruction_set: str) -> KernelCheck:
    # a process has one set of kernels, which it chooses as it makes its first session
    command = [sys.executable, "-P", "-m", "qxcompiler.doctor"]
    environment = os.environ | {"QXC_ISA": instruction_set}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
        return KernelCheck(instruction_set=instruction_set, problem=last)
    errors: dict[str, float] = json.loads(done.stdout)
    wrong = [product for product, error in errors.items() if not error <= _TOLERANCE]
    return KernelCheck(
        instruction_set=instruction_set,
        products=len(errors),
        largest_error=max(errors.values()),
        problem=f"wrong results: {', '.join(wrong)}" if wrong else None,
    )


def _errors() -> dict[str, float]:
    """The relative L2 error of one product a scheme, run with the library, beside its definition."""
    import onnx_ir as ir
    import torch

    from qxcompiler.formats import Scheme
    from qxcompiler.graph import find_sites, normalize
    from qxcompiler.passes import PackSites
    from qxcompiler.quantizers import quantize_without_statistics

    draws = np.random.default_rng(0)
    weight = draws.standard_normal((200, 48), dtype=np.float32)
    x = draws.standard_normal((3, 200), dtype=np.float32)
    errors = {}
    for scheme in [Scheme.parse(f"{fmt}/{activation}") for fmt in _FORMATS for activation in ("a8", "a16", "a32")]:
        X = ir.Value(name="x", shape=ir.Shape([3, 200]), type=ir.TensorType(ir.DataType.FLOAT))
        W = ir.Value(name="w", const_value=ir.tensor(weight, name="w"))
        node = ir.node("MatMul", [X, W], name="product")
        node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph([X], node.outputs, nodes=[node], initializers=[W], opset_imports={"": 18}, name="doctor")
        model = ir.Model(graph, ir_version=8)
        normalize(model)
        (site,) = find_sites(model)
        (result,) = quantize_without_statistics([site.weight], scheme.format, torch.device("cpu"))
        PackSites({site: scheme}, {site.weight: result.packed})(model)
        proto = ir.to_proto(model).SerializeToString()
        found, expected = (_run(proto, x, library=library).astype(np.float64) for library in (True, False))
        errors[str(scheme)] = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    return errors


def _run(model: bytes, x: np.ndarray, *, library: bool) -> np.ndarray:
    from qxcompiler_runtime import session

    (y,) = session(model, threads=1, library=library).run(None, {"x": x})
    return np.asarray(y)


if __name__ == "__main__":
    onnxruntime.set_default_logger_severity(4)
    try:
        print(json.dumps(_errors()))
    except QxcError as error:
        sys.exit(str(error))
