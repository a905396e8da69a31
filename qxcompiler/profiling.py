"""What this machine reaches, measured: a descriptor of it, for the cost model.

Packed products run in onnxruntime sessions of many alike, as they do in a model. A kernel's rate at few rows is that of
weights which no cache holds, since no kernel decodes and reads quite at once; at more, that of sixteen products which
read one weight that a cache holds. The product that reads most bytes a second gives the memory's bandwidth. What small
products take beyond their share of a large one's time is an operator's overhead: as in a model, each finds nothing of
its own in a cache, which takes more than what onnxruntime does between two.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import yaml

from qxcompiler.doctor import instruction_sets
from qxcompiler.errors import OutputError
from qxcompiler.formats import E8M0, FLOAT16, KERNEL_ACTIVATIONS, Format, Scheme
from qxcompiler.packing.tile16 import BLOCK_COLUMNS, LAYOUT, LINE_BYTES, TILE_ROWS, packed_bytes
from qxcompiler.progress import Track
from qxcompiler.runtime_ops.operators import DOMAIN, VERSION, operator_name
from qxcompiler.targets import load_target
from qxcompiler_runtime import ops_library

__all__ = ["FORMATS", "ROWS", "profile", "random_tensors"]

FORMATS = (
    "int2g128", "int3g128", "int4g128", "int5g128", "int6g128", "int8g128", "int2g128a", "int3g128a", "int4g128a",
    "int8g128a", "lut2g128", "lut3g128", "lut4g128", "lut3g128t", "nf4g64", "mxfp4",
)  # fmt: skip
ROWS = (1, 4, 16, 128)
_FEW_ROWS = 4
_ALIKE = 16  # products of one session
_SIDE = 1024  # of a weight that a cache holds
_SMALL_SIDE, _LARGE_SIDE, _LARGE_BYTES = 512, 4096, 192 << 20  # what no cache of a few cores holds
_FLOAT_BYTES = 4
_SMALL = "int4g128/a8"
_ROUNDS, _ROUND_SECONDS = 9, 0.01
_PASSES = 2  # some time apart: on a shared machine the memory is slower for minutes
_BASES = {"avx2": "x86-avx2", "neon_i8mm": "arm-i8mm", "neon_dotprod": "arm-dotprod", "neon": "arm-dotprod"}
_OPSET, _IR_VERSION = 18, 8


def profile(path: Path, threads: Sequence[int], track: Track) -> None:
    """Measure this machine, and write its descriptor.

    Args:
        path: the file to write.
        threads: numbers of threads, each once; predictions are for the last.
        track: shows progress.

    Raises:
        QxcError: the operators are not built.
        OutputError: the file cannot be written.
    """
    if not path.parent.is_dir():
        raise OutputError(path, "its folder does not exist", "make it first")
    base = load_target(_BASES.get(instruction_sets()[0], "x86-avx512"))
    clock = base.core_clock_hz
    assert clock is not None and base.memory_mode is not None
    schemes = [f"{name}/{activation}" for name in FORMATS for activation in KERNEL_ACTIVATIONS]
    overhead = min(_overhead(threads[-1]) for _ in range(_PASSES))
    kernels: dict[tuple[str, int], dict[int, float]] = {}
    bandwidths = dict.fromkeys(threads, 0.0)
    for scheme in track(_PASSES * [*schemes, "float"], "measuring"):
        for count in threads:
            rates, bandwidth = _rates(scheme, count, overhead)
            before = kernels.get((scheme, count), rates)
            kernels[scheme, count] = {rows: max(rate, before[rows]) for rows, rate in rates.items()}
            bandwidths[count] = max(bandwidths[count], bandwidth)
    described = f"measured with the {instruction_sets()[0]} kernels and onnxruntime {onnxruntime.__version__}"
    fields: dict[str, Any] = base.model_dump(exclude_none=True, exclude={"inherit"})  # nothing measured is inherited
    fields |= {"name": path.stem, "description": described, "operator_overhead_cycles": _digits(overhead * clock)}
    fields["memory"][base.memory_mode.weights]["bandwidth_bytes_per_second"] = bandwidths[threads[-1]]
    fields["measured"] = {
        "threads": threads[-1],
        "read_bandwidth_bytes_per_second": bandwidths,
        "operator_overhead_seconds": overhead,
        "kernels": [
            {"scheme": scheme, "threads": count, "weights_per_second": rates}
            for (scheme, count), rates in kernels.items()
        ],
    }
    text = yaml.safe_dump(fields, sort_keys=False, default_flow_style=None, width=120)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(path, f"cannot be written ({error.strerror or error})", "choose another place") from error


def random_tensors(fmt: Format, N: int, K: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The tensors of a packed weight [N, K] with random codes, by the operators' names."""
    tiles, per_group = -(-N // TILE_ROWS), (-(-N // TILE_ROWS), fmt.groups(K), TILE_ROWS)
    lines = (tiles, -(-K // BLOCK_COLUMNS), fmt.bits, LINE_BYTES)
    tensors = {"packed": rng.integers(0, 256, lines, dtype=np.uint8)}
    if fmt.scale_type is FLOAT16:
        tensors["scales"] = (rng.standard_normal(per_group) / K).astype(np.float16)
    elif fmt.scale_type is E8M0:
        tensors["scales"] = rng.integers(110, 118, per_group, dtype=np.uint8)
    else:
        tensors["scales"] = rng.integers(1, 256, per_group, dtype=np.uint8)
        tensors["row_scales"] = (rng.standard_normal((tiles, 1, TILE_ROWS)) / K).astype(np.float16)
    if fmt.has_zero_points:
        tensors["zero_points"] = rng.integers(0, 2**fmt.bits, per_group, dtype=np.uint8)
    if rows := fmt.codebook_rows(N):
        shape = (1, 1) if rows == 1 else (tiles, TILE_ROWS)
        tensors["codebook"] = rng.integers(-127, 128, (*shape, 2**fmt.bits), dtype=np.int8)
    return tensors


def _overhead(threads: int) -> float:
    """Seconds of an operator that do not grow with its weight."""
    scheme = Scheme.parse(_SMALL)
    (small, count), (large, large_count) = (_from_memory(scheme, side, threads) for side in (_SMALL_SIDE, _LARGE_SIDE))
    seconds, large_seconds = _seconds(small, 1) / count, _seconds(large, 1) / large_count
    share = (_SMALL_SIDE / _LARGE_SIDE) ** 2
    return _digits(max(0.0, (seconds - share * large_seconds) / (1 - share)))


def _rates(name: str, threads: int, overhead: float) -> tuple[dict[int, float], float]:
    """Weights that pass a second, by rows; and bytes that were read so from memory."""
    scheme = None if name == "float" else Scheme.parse(name)
    large, count = _from_memory(scheme, _LARGE_SIDE, threads)
    kept = _session([scheme] * _ALIKE, _SIDE, _SIDE, threads, one=True)
    rates, bandwidth = {}, 0.0
    for rows in ROWS:
        if rows <= _FEW_ROWS:
            seconds = _seconds(large, rows) / count
            seconds = max(seconds - overhead, seconds / 10)
            bandwidth = max(bandwidth, _weight_bytes(scheme, _LARGE_SIDE) / seconds)
            rates[rows] = _digits(_LARGE_SIDE**2 / seconds)
        else:
            rates[rows] = _digits(_SIDE**2 * _ALIKE / _seconds(kept, rows))
    return rates, _digits(bandwidth)


def _from_memory(scheme: Scheme | None, side: int, threads: int) -> tuple[onnxruntime.InferenceSession, int]:
    """Products of so many weights [side, side] that no cache holds them, and their number."""
    count = -(-_LARGE_BYTES // _weight_bytes(scheme, side))
    return _session([scheme] * count, side, side, threads), count


def _weight_bytes(scheme: Scheme | None, side: int) -> int:
    return packed_bytes(scheme.format, side, side) if scheme else side * side * _FLOAT_BYTES


def _session(
    schemes: Sequence[Scheme | None], N: int, K: int, threads: int, *, one: bool = False
) -> onnxruntime.InferenceSession:
    """Products of one input X [M, K], a node for each scheme; with `one`, all read one weight."""
    rng = np.random.default_rng(0)
    x = ir.Value(name="X", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows", K]))
    initializers: list[ir.Value] = []
    nodes = []

    def constant(name: str, array: np.ndarray) -> ir.Value:
        initializers.append(ir.Value(name=name, const_value=ir.tensor(array, name=name)))
        return initializers[-1]

    packed = [scheme for scheme in schemes if scheme is not None]
    no_bias = constant("no_bias", np.zeros(1, np.float32)) if packed else None
    weight: list[ir.Value] = []
    for index, scheme in enumerate(schemes):
        if scheme is None:
            if not (one and weight):
                weight = [constant(f"w{index}", rng.standard_normal((K, N), dtype=np.float32))]
            node = ir.node("MatMul", [x, *weight])
        else:
            if not (one and weight):
                tensors = random_tensors(scheme.format, N, K, rng)
                weight = [constant(f"w{index}.{part}", array) for part, array in tensors.items()]
            attributes = {"K": K, "N": N, "group_size": scheme.format.group_length(K), "layout": LAYOUT}
            attributes["activation"] = scheme.activation or ""
            node = ir.node(operator_name(scheme.format, "MatMul"), [x, *weight, no_bias], attributes, domain=DOMAIN)
        node.outputs[0].name = f"y{index}"
        node.outputs[0].type, node.outputs[0].shape = x.type, ir.Shape(["rows", N])
        nodes.append(node)
    graph = ir.Graph(
        [x],
        [node.outputs[0] for node in nodes],
        nodes=nodes,
        initializers=initializers,
        opset_imports={"": _OPSET, DOMAIN: VERSION},
        name="products",
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(ops_library()))
    model = ir.to_proto(ir.Model(graph, ir_version=_IR_VERSION)).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _seconds(session: onnxruntime.InferenceSession, rows: int) -> float:
    """Of one run, in the fastest of some rounds: others may use the machine in the meantime."""
    K = session.get_inputs()[0].shape[1]
    feeds = {"X": np.random.default_rng(1).standard_normal((rows, K), dtype=np.float32)}
    start = time.perf_counter()
    session.run(None, feeds)
    once = time.perf_counter() - start
    repeats = max(1, math.ceil(_ROUND_SECONDS / once))
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for _ in range(repeats):
            session.run(None, feeds)
        times.append((time.perf_counter() - start) / repeats)
    return min(times)


def _digits(value: float) -> float:
    return float(f"{value:.3g}")
