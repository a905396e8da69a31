"""Small models of one packed operator, and what they must compute."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx_ir.convenience import convert_attributes

from qxcompiler.formats import (
    CODEBOOK_BITS,
    INTEGER_BITS,
    MX_FORMATS,
    SMALL_FLOATS,
    CodebookGrid,
    FloatGrid,
    Format,
    Grid,
    IntegerGrid,
    MxFormat,
    QuantizedWeight,
    TernaryFormat,
    parse_format,
)
from qxcompiler.packing import LAYOUT, pack
from qxcompiler.runtime_ops.operators import DOMAIN, VERSION, function_for, operator_name
from qxcompiler_runtime import ops_library

FAMILIES = (
    [f"int{b}" for b in INTEGER_BITS]
    + [f"int{b}@a" for b in INTEGER_BITS]
    + [f"lut{b}" for b in CODEBOOK_BITS]
    + [f"lut{b}@t" for b in CODEBOOK_BITS]
    + ["nf4", "ternary", *MX_FORMATS, "fp8e4m3", "fp8e5m2@s8"]
    + ["int3@s8", "int4@as8", "lut2@s8", "lut4@ts8", "nf4@s8", "int2@e8", "int5@ae8", "lut3@e8"]
)


def format_of(family: str, group_size: int | None) -> Format:
    """`int3@a` and 16 -> int3g16a; the groups of MX formats are always of 32."""
    if family in MX_FORMATS:
        return MX_FORMATS[family]
    name, _, suffix = family.partition("@")
    return parse_format(f"{name}{f'g{group_size}' if group_size else ''}{suffix}")


def random_weight(fmt: Format, N: int, K: int, seed: int) -> QuantizedWeight:
    """Random codes, scales of any magnitude near 1 that the format has, random zero points and codebooks."""
    rng = torch.Generator().manual_seed(seed)
    scales = fmt.scale_type.rounded(0.05 + torch.rand(N, fmt.groups(K), generator=rng))
    grid: Grid
    elements = [element for element in SMALL_FLOATS if element.code_type == fmt.code_type]
    if isinstance(fmt, MxFormat):
        grid = fmt.with_scales(K, 2.0 ** torch.randint(-4, 1, scales.shape, generator=rng))
    elif elements:
        grid = FloatGrid(fmt, K, scales, elements[0])
    elif isinstance(fmt, TernaryFormat):
        entries = fmt.fit(torch.zeros(1, 1), torch.ones(1)).entries
        grid = CodebookGrid(fmt, K, scales, entries)
    elif rows := fmt.codebook_rows(N):
        entries = torch.randint(-127, 128, (rows, 2**fmt.bits), generator=rng).sort(dim=1).values
        grid = CodebookGrid(fmt, K, scales, entries.float())
    else:
        zeros = torch.full_like(scales, 2 ** (fmt.bits - 1))
        if fmt.has_zero_points:
            zeros = torch.randint(0, 2**fmt.bits, scales.shape, generator=rng).float()
        grid = IntegerGrid(fmt, K, scales, zeros)
    codes = torch.randint(0, 2**fmt.bits, (N, K), generator=rng).to(torch.uint8)
    for element in elements:  # infinity and NaN become the numbers before them
        codes -= len(element.not_finite) * ~grid.decode(codes, slice(None)).isfinite()
    return QuantizedWeight(grid, codes)


def random_rows(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Normal numbers, each row at a magnitude of its own, and a row of zeros where there are several."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape) * 10.0 ** rng.uniform(-3, 3, (*shape[:-1], 1))
    if len(shape) > 1 and shape[0] > 2:
        a[1] = 0
    return a.astype(np.float32)


def _model(
    weight: QuantizedWeight,
    kind: str,
    data: ir.Value,
    bias: np.ndarray | None,
    activation: str | None,
    opset: int,
    with_body: bool = True,
    **wrong: object,
) -> bytes:
    packed = pack(weight)
    arrays = {name: tensor.numpy() for name, tensor in packed.tensors.items()}
    if bias is not None:
        arrays["bias"] = bias
    attributes: dict[str, object] = {
        "K": packed.in_features,
        "N": packed.out_features,
        "group_size": weight.format.group_length(packed.in_features),
        "layout": LAYOUT,
    }
    if activation:
        attributes["activation"] = activation
    for name, value in wrong.items():
        (arrays if name in arrays else attributes)[name] = value  # type: ignore[assignment]
    initializers = []
    for name, array in arrays.items():
        tensor = ir.tensor(array, name=name)
        initializers.append(
            ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        )
    name = operator_name(weight.format, kind)
    node = ir.Node(DOMAIN, name, [data, *initializers], attributes=convert_attributes(attributes), name="the_node")
    y = node.outputs[0]
    y.name, y.dtype = "Y", ir.DataType.FLOAT
    opsets = {"": opset, DOMAIN: VERSION}
    graph = ir.Graph([data], [y], nodes=[node], initializers=initializers, opset_imports=opsets, name="one")
    model = ir.Model(graph, ir_version=9, functions=[function_for(name, opset)] if with_body else [])
    return ir.to_proto(model).SerializeToString()


def matmul_model(
    weight: QuantizedWeight, activation: str, bias: np.ndarray | None = None, opset: int = 18, **wrong: object
) -> bytes:
    """One MatMul; `wrong` replaces attributes or packed tensors. Without a body, only the library can run it."""
    data = ir.Value(name="data", type=ir.TensorType(ir.DataType.FLOAT))
    return _model(weight, "MatMul", data, np.zeros(1, np.float32) if bias is None else bias, activation, opset, **wrong)


def swiglu_model(
    weight: QuantizedWeight, activation: str, bias: np.ndarray | None = None, opset: int = 18, **wrong: object
) -> bytes:
    """One SwiGlu, of a weight whose tiles of 16 rows are gate and up in turn; `wrong` as for a MatMul."""
    data = ir.Value(name="data", type=ir.TensorType(ir.DataType.FLOAT))
    return _model(weight, "SwiGlu", data, np.zeros(1, np.float32) if bias is None else bias, activation, opset, **wrong)


def gather_model(
    weight: QuantizedWeight, dtype: ir.DataType = ir.DataType.INT64, opset: int = 18, **wrong: object
) -> bytes:
    """One Gather; `wrong` as for a MatMul."""
    return _model(weight, "Gather", ir.Value(name="data", type=ir.TensorType(dtype)), None, None, opset, **wrong)


@cache
def library_for(isa: str) -> str:
    """A copy of the library that runs the kernels of one instruction set: a library chooses once in a process."""
    copy = Path(mkdtemp()) / f"{isa}.so"
    shutil.copy(ops_library(), copy)
    return str(copy)


def session_of(model: bytes, isa: str | None, threads: int = 1) -> onnxruntime.InferenceSession:
    """A session with the kernels of `isa`; None for a stock session, which runs function bodies."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if isa:
        previous = os.environ.get("QXC_ISA")
        os.environ["QXC_ISA"] = isa
        try:
            options.register_custom_ops_library(library_for(isa))
        finally:
            if previous is None:
                del os.environ["QXC_ISA"]
            else:
                os.environ["QXC_ISA"] = previous
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(model: bytes, data: np.ndarray, isa: str | None, threads: int = 1) -> np.ndarray:
    """The output of a model."""
    return session_of(model, isa, threads).run(None, {"data": data})[0]


OLD_RUNTIMES = Path(__file__).parent.parent / ".cache"
SCRIPT = """
import sys, numpy, onnxruntime
library, model, data, output = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
if library:
    options.register_custom_ops_library(library)
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
numpy.save(output, session.run(None, dict(numpy.load(data)))[0])
"""


def run_in(
    version: str, library: str, model: bytes, feeds: dict[str, np.ndarray], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Runs a model in another version of onnxruntime, which writes the first output to `y.npy`."""
    runtime = OLD_RUNTIMES / f"onnxruntime-{version}"
    if not (runtime / "onnxruntime").exists():
        pytest.skip(f"onnxruntime {version} is not installed in {runtime}")
    (folder / "model.onnx").write_bytes(model)
    np.savez(folder / "data.npz", **feeds)
    files = [str(folder / name) for name in ("model.onnx", "data.npz", "y.npy")]
    environment = {**os.environ, "PYTHONPATH": str(runtime)}
    command = [sys.executable, "-P", "-c", SCRIPT, library, *files]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)


@cache
def available_isas() -> tuple[str, ...]:
    """What this processor can run, of what is built."""
    model = matmul_model(random_weight(parse_format("int4"), 16, 32, 0), "a8")
    found = []
    for isa in ("portable", "avx2", "avx512"):
        try:
            session_of(model, isa)
        except Exception as error:  # onnxruntime's exceptions have no common base
            assert "lacks it" in str(error)
        else:
            found.append(isa)
    return tuple(found)


def as_activation(a: np.ndarray, activation: str) -> np.ndarray:
    """Float64: what is left of A after dynamic quantization to int8, for a8."""
    if activation != "a8":
        return a.astype(np.float64)
    scale = np.abs(a).max(axis=-1, keepdims=True) / np.float32(127)
    q = np.clip(np.round(a / np.where(scale > 0, scale, 1)), -127, 127)
    return q.astype(np.float64) * scale


def expected_matmul(weight: QuantizedWeight, a: np.ndarray, bias: np.ndarray | float, activation: str) -> np.ndarray:
    """Float64 reference by the Python decode."""
    return as_activation(a, activation) @ weight.decode().double().numpy().T + bias


def expected_swiglu(weight: QuantizedWeight, a: np.ndarray, bias: np.ndarray | float, activation: str) -> np.ndarray:
    """Float64 reference: silu(gate) * up."""
    N = weight.codes.shape[0]
    pairs = expected_matmul(weight, a, bias, activation).reshape(*a.shape[:-1], N // 32, 2, 16)
    gate, up = pairs[..., 0, :], pairs[..., 1, :]
    with np.errstate(over="ignore"):
        return (gate / (1 + np.exp(-gate)) * up).reshape(*a.shape[:-1], N // 2)


def relative_error(y: np.ndarray, reference: np.ndarray) -> float:
    """L2, over the whole tensor."""
    assert y.shape == reference.shape
    norm = float(np.linalg.norm(reference))
    return float(np.linalg.norm(y - reference)) / norm if norm else float(np.abs(y).max(initial=0))


TOLERANCE = {"a32": 2e-6, "a16": 5e-5, "a8": 2e-6}
SWIGLU_TOLERANCE = {"a32": 4e-6, "a16": 1e-4, "a8": 4e-6}  # of a product of two
