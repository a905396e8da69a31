"""Time of one packed matrix product: the bare kernel beside a plain read of as many bytes, and the operator in an ONNX
Runtime session beside onnxruntime's own `MatMulNBits` and `MatMulBnb4`.

Weights cycle through more memory than any cache holds. Everything is timed in turns, because the memory's speed
changes within seconds: *share* is the time of a plain read over the kernel's, the median of all pairs; *over* is the
operator in a session over the bare kernel, and *ratio* that session over the peer's, both medians of rounds.

    python benchmarks/kernels.py [--shape 4096 14336] [--rows 1] [--threads 1 2] [--isa avx2] [--schemes int3g128/a8]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import cache

os.environ["NUMPY_MADVISE_HUGEPAGE"] = "0"  # weights lie in small pages, as those of a mapped model do

import numpy as np
import onnx_ir as ir
import onnxruntime
from native import Library
from onnx_ir.convenience import convert_attributes
from packed_models import packed_operator, random_tensors
from rich.console import Console
from rich.table import Table

from qxcompiler.formats import Format, Scheme, parse_format
from qxcompiler.packing import packed_bytes
from qxcompiler.runtime_ops.operators import DOMAIN, MINIMUM_OPSET, VERSION
from qxcompiler_runtime import ops_library

WORKING_SET = 200e6  # bytes of weights that are read in turn
FORMATS = (
    *(f"int{bits}g128" for bits in (2, 3, 4, 5, 6, 8)),
    *(f"int{bits}g128a" for bits in (2, 3, 4)),
    *(f"lut{bits}g128t" for bits in (2, 3, 4)),
    *(f"lut{bits}g128" for bits in (2, 3, 4)),
    "mxfp4",
    "nf4g64",
)
SCHEMES = [f"{fmt}/{activation}" for fmt in FORMATS for activation in ("a8", "a16")]
ROUNDS, RUNS = 7, 3  # of sessions: rounds, and runs in each
NodeOf = Callable[[ir.Value], tuple[ir.Node, list[ir.Value]]]


def _initializer(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)


def _model(K: int, copies: int, node_of: NodeOf) -> bytes:
    """`copies` products of the same A, each with weights of its own."""
    a = ir.Value(name="A", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["M", K]))
    nodes, initializers = [], []
    for copy in range(copies):
        node, tensors = node_of(a)
        for tensor in tensors:
            tensor.name = f"{tensor.name}{copy}"
        output = node.outputs[0]
        output.name, output.type = f"Y{copy}", ir.TensorType(ir.DataType.FLOAT)
        nodes.append(node)
        initializers += tensors
    opsets = {"": MINIMUM_OPSET, DOMAIN: VERSION, "com.microsoft": 1}
    outputs = [node.outputs[0] for node in nodes]
    graph = ir.Graph([a], outputs, nodes=nodes, initializers=initializers, opset_imports=opsets, name="products")
    return ir.to_proto(ir.Model(graph, ir_version=9)).SerializeToString()


def packed_model(fmt: Format, activation: str, N: int, K: int, tensors: list[dict[str, np.ndarray]]) -> bytes:
    """Our operator, once for each weight."""
    operator, attributes = packed_operator(Scheme(fmt, activation), N, K)
    weights = iter(tensors)

    def node_of(a: ir.Value) -> tuple[ir.Node, list[ir.Value]]:
        arrays = {**next(weights), "bias": np.zeros(1, np.float32)}
        inputs = [_initializer(name, array) for name, array in arrays.items()]
        return ir.Node(DOMAIN, operator, [a, *inputs], convert_attributes(attributes)), inputs

    return _model(K, len(tensors), node_of)


def nbits_model(bits: int, accuracy_level: int, N: int, K: int, copies: int, rng: np.random.Generator) -> bytes:
    """onnxruntime's MatMulNBits, groups of 128 (64 where K is no multiple of it)."""
    block = 128 if K % 128 == 0 else 64
    attributes = {"K": K, "N": N, "bits": bits, "block_size": block, "accuracy_level": accuracy_level}

    def node_of(a: ir.Value) -> tuple[ir.Node, list[ir.Value]]:
        codes = rng.integers(0, 256, (N, K // block, block * bits // 8), dtype=np.uint8)
        scales = (rng.standard_normal(N * (K // block)) / K).astype(np.float32)
        inputs = [_initializer("codes", codes), _initializer("scales", scales)]
        return ir.Node("com.microsoft", "MatMulNBits", [a, *inputs], convert_attributes(attributes)), inputs

    return _model(K, copies, node_of)


def nf4_model(N: int, K: int, copies: int, rng: np.random.Generator) -> bytes:
    """onnxruntime's MatMulBnb4, NF4 in groups of 64."""
    attributes = {"K": K, "N": N, "block_size": 64, "quant_type": 1}

    def node_of(a: ir.Value) -> tuple[ir.Node, list[ir.Value]]:
        codes = rng.integers(0, 256, N * K // 2, dtype=np.uint8)
        scales = (rng.random(N * K // 64) / K).astype(np.float32)
        inputs = [_initializer("codes", codes), _initializer("scales", scales)]
        return ir.Node("com.microsoft", "MatMulBnb4", [a, *inputs], convert_attributes(attributes)), inputs

    return _model(K, copies, node_of)


def _session(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # a session's threads must not spin while the other one is timed
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.register_custom_ops_library(str(ops_library()))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class TimedSession:
    """A session of `copies` products, and how long one of them takes."""

    def __init__(self, model: bytes, threads: int, copies: int) -> None:
        self._session, self._copies = _session(model, threads), copies

    def seconds(self, a: np.ndarray) -> float:
        """Of a product: the mean of all in the session, the median of a few runs."""
        runs = []
        for _ in range(RUNS):
            start = time.perf_counter()
            self._session.run(["Y0"], {"A": a})
            runs.append(time.perf_counter() - start)
        return statistics.median(runs) / self._copies


@cache
def peer_session(name: str, threads: int, N: int, K: int, copies: int) -> TimedSession:
    """onnxruntime's own operator, by the name in the table."""
    rng = np.random.default_rng(1)
    if name == "Bnb4":
        return TimedSession(nf4_model(N, K, copies, rng), threads, copies)
    bits, level = name.removeprefix("NBits").split(" level ")
    return TimedSession(nbits_model(int(bits), int(level), N, K, copies, rng), threads, copies)


def peer_of(fmt: Format, activation: str) -> str:
    """What onnxruntime would run in place of a scheme: its nearest operator."""
    if fmt.name.startswith("nf4"):
        return "Bnb4"
    if activation != "a8":
        return "NBits4 level 0"
    return "NBits2 level 4" if fmt.bits == 2 else "NBits4 level 4"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=2, default=(4096, 14336), metavar=("K", "N"))
    parser.add_argument("--rows", type=int, default=1, help="M")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--isa", help="such as avx2; the best of this machine without")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--kernels-only", action="store_true", help="no sessions")
    arguments = parser.parse_args()
    (K, N), M, rng = arguments.shape, arguments.rows, np.random.default_rng(0)
    if arguments.isa:
        os.environ["QXC_ISA"] = arguments.isa
    library = Library()
    kernels = library.kernels(arguments.isa)
    a = rng.standard_normal((M, K), dtype=np.float32)

    version = f"{library.name(kernels)}, onnxruntime {onnxruntime.__version__}"
    table = Table(title=f"M = {M}, K = {K}, N = {N}; {version}; milliseconds a product")
    for column in (
        "scheme",
        "threads",
        "kernel",
        "GB/s",
        "read",
        "share",
        "GFLOP/s",
        "session",
        "",
        "peer",
        "",
        "ratio",
    ):
        table.add_column(column, justify="left" if column == "scheme" else "right", no_wrap=True)
    for scheme in arguments.schemes:
        name, activation = scheme.split("/")
        fmt = parse_format(name)
        weight_bytes = packed_bytes(fmt, N, K)
        copies = max(2, round(WORKING_SET / weight_bytes)) if M <= 16 else 2
        tensors = [random_tensors(fmt, N, K, rng) for _ in range(copies)]
        made = [library.product(kernels, fmt, activation, a, each, N) for each in tensors]
        products = [product for product, _ in made]
        read_bytes = min(weight_bytes, tensors[0]["packed"].nbytes)  # what lies in one piece
        for threads in arguments.threads:
            pairs = arguments.pairs if M <= 16 else 10
            seconds, reads = library.time_pairs(products, read_bytes, threads, pairs)
            reads = reads * weight_bytes / read_bytes
            kernel = float(np.median(seconds))
            cells = [
                scheme,
                str(threads),
                f"{1e3 * kernel:.3f}",
                f"{weight_bytes / kernel / 1e9:.1f}",
                f"{weight_bytes / float(np.median(reads)) / 1e9:.1f}",
                f"{float(np.median(reads / seconds)):.2f}",
                f"{2 * M * N * K / kernel / 1e9:.0f}",
            ]
            if not arguments.kernels_only:
                ours = TimedSession(packed_model(fmt, activation, N, K, tensors), threads, copies)
                peer_name = peer_of(fmt, activation)
                peer_bytes = N * K * (2 if fmt.bits == 2 else 4) / 8
                peer_copies = max(2, round(WORKING_SET / peer_bytes)) if M <= 16 else 2
                peer = peer_session(peer_name, threads, N, K, peer_copies)
                ours.seconds(a), peer.seconds(a)  # warms up
                rounds = []
                for _ in range(ROUNDS):
                    bare, _ = library.time_pairs(products, read_bytes, threads, max(4, pairs // ROUNDS))
                    rounds.append((ours.seconds(a), peer.seconds(a), float(np.median(bare))))
                session, theirs, _ = (statistics.median(column) for column in zip(*rounds, strict=True))
                over = statistics.median(mine / bare for mine, _, bare in rounds)
                ratio = statistics.median(mine / other for mine, other, _ in rounds)
                cells += [f"{1e3 * session:.3f}", f"{over:.2f}", f"{1e3 * theirs:.3f}", peer_name, f"{ratio:.2f}"]
            table.add_row(*cells)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
