"""Time of one packed matrix product through ONNX Runtime sessions, beside onnxruntime's own 4-bit `MatMulNBits`.

Each model is a chain of products, K = N, with enough copies of the weights that none stays in cache. Sessions run in
turns, in pairs with `MatMulNBits`, because the memory's speed changes within seconds; the medians are printed.

    python benchmarks/kernels.py [--size 4096] [--rows 1] [--threads 1 2] [--formats int4g128/a8 lut3g128/a16 ...]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnx_ir.convenience import convert_attributes
from rich.console import Console
from rich.table import Table

from qxcompiler.formats import Format, parse_format
from qxcompiler.packing import LAYOUT, packed_bytes
from qxcompiler.packing.tile16 import BLOCK_COLUMNS, LINE_BYTES, TILE_ROWS
from qxcompiler.runtime_ops import ops_library
from qxcompiler.runtime_ops.operators import DOMAIN, MINIMUM_OPSET, VERSION, operator_name

NodeOf = Callable[[int, ir.Value], tuple[ir.Node, list[ir.Value]]]
WORKING_SET = 160e6  # bytes of weights a session reads: more than any cache
FORMATS = [
    f"{fmt}/{activation}"
    for fmt in (
        "int2g128",
        "int3g128",
        "int4g128",
        "int4g128a",
        "lut3g128",
        "lut3g128t",
        "lut4g128",
        "int8g128",
    )
    for activation in ("a8", "a16")
]


def _chain(size: int, copies: int, node_of: NodeOf) -> bytes:
    value = ir.Value(name="A", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["M", size]))
    first, nodes, initializers = value, [], []
    for copy in range(copies):
        node, tensors = node_of(copy, value)
        nodes.append(node)
        initializers += tensors
        value = node.outputs[0]
        value.name = f"Y{copy}"
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["M", size])
    opsets = {"": MINIMUM_OPSET, DOMAIN: VERSION, "com.microsoft": 1}
    graph = ir.Graph([first], [value], nodes=nodes, initializers=initializers, opset_imports=opsets, name="chain")
    return ir.to_proto(ir.Model(graph, ir_version=9)).SerializeToString()


def _initializer(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)


def _scales(bits: int, size: int, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Of either sign, so that the numbers stay about as large from one product to the next."""
    return rng.choice([-1.0, 1.0], shape) * 2.0 ** (1.7 - bits) / size**0.5


def packed_chain(fmt: Format, activation: str, size: int, copies: int, rng: np.random.Generator) -> bytes:
    """Products with random weights of a format."""
    tiles, groups = -(-size // TILE_ROWS), fmt.groups(size)

    def node_of(copy: int, a: ir.Value) -> tuple[ir.Node, list[ir.Value]]:
        lines = (tiles, -(-size // BLOCK_COLUMNS), fmt.bits, LINE_BYTES)
        level_bits = 8 if fmt.codebook_rows(size) else fmt.bits
        tensors = {
            "packed": rng.integers(0, 256, lines, dtype=np.uint8),
            "scales": _scales(level_bits, size, (tiles, groups, TILE_ROWS), rng).astype(np.float16),
        }
        if fmt.has_zero_points:
            middle = 2 ** (fmt.bits - 1)
            tensors["zero_points"] = np.full((tiles, groups, TILE_ROWS), middle, np.uint8)
        if rows := fmt.codebook_rows(size):
            shape = (1, 1) if rows == 1 else (tiles, TILE_ROWS)
            tensors["codebook"] = rng.integers(-127, 128, (*shape, 2**fmt.bits), dtype=np.int8)
        tensors["bias"] = np.zeros(1, np.float32)
        inputs = [_initializer(f"{name}{copy}", array) for name, array in tensors.items()]
        attributes = {
            "K": size,
            "N": size,
            "group_size": fmt.group_length(size),
            "layout": LAYOUT,
            "activation": activation,
        }
        node = ir.Node(DOMAIN, operator_name(fmt, "MatMul"), [a, *inputs], attributes=convert_attributes(attributes))
        return node, inputs

    return _chain(size, copies, node_of)


def peer_chain(size: int, copies: int, accuracy_level: int, rng: np.random.Generator) -> bytes:
    """Products by onnxruntime's MatMulNBits, 4 bits in groups of 128."""

    def node_of(copy: int, a: ir.Value) -> tuple[ir.Node, list[ir.Value]]:
        groups = size // 128
        codes = rng.integers(0, 256, (size, groups, 64), dtype=np.uint8)
        scales = _scales(4, size, (size * groups,), rng).astype(np.float32)
        inputs = [_initializer(f"codes{copy}", codes), _initializer(f"scales{copy}", scales)]
        attributes = {"K": size, "N": size, "bits": 4, "block_size": 128, "accuracy_level": accuracy_level}
        node = ir.Node("com.microsoft", "MatMulNBits", [a, *inputs], attributes=convert_attributes(attributes))
        return node, inputs

    return _chain(size, copies, node_of)


def _session(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(ops_library()))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _time(session: onnxruntime.InferenceSession, a: np.ndarray) -> float:
    start = time.perf_counter()
    session.run(None, {"A": a})
    return time.perf_counter() - start


def compare(
    ours: onnxruntime.InferenceSession, peer: onnxruntime.InferenceSession, a: np.ndarray, pairs: int
) -> tuple[float, float, float]:
    """Median seconds a run of ours, of the peer, and of the ratio of the two in the same pair."""
    for session in (ours, peer):
        _time(session, a)
    times = [(_time(ours, a), _time(peer, a)) for _ in range(pairs)]
    ratios = [mine / theirs for mine, theirs in times]
    mine, theirs = zip(*times, strict=True)
    return statistics.median(mine), statistics.median(theirs), statistics.median(ratios)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="K and N, a multiple of 128")
    parser.add_argument("--rows", type=int, default=1, help="M")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--pairs", type=int, default=31)
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    arguments = parser.parse_args()
    size, rng = arguments.size, np.random.default_rng(0)
    a = rng.standard_normal((arguments.rows, size), dtype=np.float32)
    peer_copies = round(WORKING_SET / (size * size * 4.25 / 8)) + 1
    peers = {"a8": peer_chain(size, peer_copies, 4, rng), "a16": peer_chain(size, peer_copies, 0, rng)}

    table = Table(title=f"M = {arguments.rows}, K = N = {size}, onnxruntime {onnxruntime.__version__}, ms a product")
    for column in (
        "format",
        "threads",
        "ours",
        "GB/s",
        "GFLOP/s",
        "MatMulNBits",
        "level",
        "ratio",
    ):
        table.add_column(column, justify="left" if column == "format" else "right", no_wrap=True)
    for scheme in arguments.formats:
        name, activation = scheme.split("/")
        fmt = parse_format(name)
        matrix_bytes = packed_bytes(fmt, size, size)
        copies = round(WORKING_SET / matrix_bytes) + 1
        model = packed_chain(fmt, activation, size, copies, rng)
        for threads in arguments.threads:
            ours, theirs, ratio = compare(
                _session(model, threads), _session(peers[activation], threads), a, arguments.pairs
            )
            seconds = ours / copies
            flops = 2 * arguments.rows * size * size
            table.add_row(
                scheme,
                str(threads),
                f"{1e3 * seconds:.3f}",
                f"{matrix_bytes / seconds / 1e9:.1f}",
                f"{flops / seconds / 1e9:.0f}",
                f"{1e3 * theirs / peer_copies:.3f}",
                "4" if activation == "a8" else "0",
                f"{ratio * peer_copies / copies:.2f}",
            )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
