"""A whole model, token by token: a Llama with random packed weights decodes in an ONNX Runtime session.

Its products take what ONNX Runtime's profiler sums up; beside that stand the same products as bare kernels, on the same
weights in the same order (so nothing stays in cache), without ONNX Runtime. *over* is the first over the second, the
median of rounds that take turns.

    python benchmarks/synthetic_llama.py [--schemes int3g128/a8] [--blocks 8] [--threads 1 2] [--tokens 32]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
import onnxruntime
from native import Library, MatMul
from onnx_ir.tape import Tape
from onnxruntime import OrtValue
from packed_models import packed_operator, random_tensors
from rich.console import Console
from rich.table import Table

from qxcompiler.formats import Scheme
from qxcompiler.graph import load_model, save_model
from qxcompiler.packing import packed_bytes
from qxcompiler.passes import pipelines
from qxcompiler.passes.emission.writer import BLOCK, GROUP, ROLE
from qxcompiler.runtime_ops.operators import DOMAIN, OPERATORS, SCHEME, VERSION
from qxcompiler_runtime import ops_library

OPSET, IR_VERSION = 23, 11  # the first with RMSNormalization, RotaryEmbedding and Attention
ROTARY_BASE = 10000.0
EPSILON = 1e-5
PROMPT = (1, 2, 3, 4)
ROUNDS = 5
REST = 0.05  # seconds after decoding: threads that still spin would disturb what is timed next


@dataclass(frozen=True)
class Llama:
    """Sizes of a model; by default those of Llama 3.2 1B with half of its blocks and a smaller vocabulary."""

    blocks: int = 8
    hidden: int = 2048
    mlp: int = 8192
    heads: int = 32
    key_value_heads: int = 8
    vocabulary: int = 32000
    positions: int = 2048

    @property
    def head_size(self) -> int:
        """Features of a head."""
        return self.hidden // self.heads


class _Writer(Tape):
    """Writes the nodes and random weights of a model in one scheme."""

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self._scheme = scheme
        self._rng = np.random.default_rng(0)
        self._no_bias = self.constant("no_bias", np.zeros(1, np.float32))

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        return self.initializer(ir.tensor(array, name=name))

    def weight(self, name: str, N: int, K: int) -> list[ir.Value]:
        tensors = random_tensors(self._scheme.format, N, K, self._rng)
        return [self.constant(f"{name}.{part}", array) for part, array in tensors.items()]

    def embedding(self, weight: list[ir.Value], indices: ir.Value, N: int, K: int) -> ir.Value:
        operator, attributes = packed_operator(Scheme(self._scheme.format, None), N, K)
        return self.op(operator, [indices, *weight], attributes, domain=DOMAIN)

    def linear(self, weight: list[ir.Value], x: ir.Value, N: int, K: int, role: str, block: int | None) -> ir.Value:
        operator, attributes = packed_operator(self._scheme, N, K)
        y = self.op(operator, [x, *weight, self._no_bias], attributes, domain=DOMAIN)
        node = y.producer()
        assert node is not None
        node.metadata_props.update({ROLE: role, SCHEME: str(self._scheme), BLOCK: str(block)})
        node.meta[GROUP] = (x, block)  # as what a compile makes, which alone is fused
        return y

    def norm(self, name: str, x: ir.Value, width: int) -> ir.Value:
        gain = self.constant(f"{name}.weight", np.ones(width, np.float32))
        return self.op("RMSNormalization", [x, gain], {"axis": -1, "epsilon": EPSILON})


def build(sizes: Llama, scheme: Scheme) -> ir.Model:
    """A Llama with random packed weights, fused as `qxc compile` fuses it; head and embedding share theirs.

    Inputs: `input_ids` and `position_ids` int64 [batch, length], `past_key_values.<block>.key` and `.value` float32
    [batch, key_value_heads, past, head_size]. Outputs: `logits` float32 [batch, length, vocabulary], and
    `present.<block>.key` and `.value`, the past with the new tokens.
    """
    writer = _Writer(scheme)
    hidden, key_value = sizes.hidden, sizes.key_value_heads * sizes.head_size
    cached: list[int | str] = ["batch", sizes.key_value_heads, "past", sizes.head_size]
    ids, positions = (_input(name, ir.DataType.INT64, ["batch", "length"]) for name in ("input_ids", "position_ids"))
    frequencies = ROTARY_BASE ** (-np.arange(0, sizes.head_size, 2) / sizes.head_size)
    angles = np.arange(sizes.positions)[:, None] * frequencies
    cos, sin = (writer.constant(f.__name__, f(angles).astype(np.float32)) for f in (np.cos, np.sin))
    inputs, outputs = [ids, positions], []

    def linear(block: int, role: str, x: ir.Value, N: int, K: int) -> ir.Value:
        return writer.linear(writer.weight(f"{block}.{role}", N, K), x, N, K, role, block)

    def rotated(x: ir.Value, heads: int) -> ir.Value:
        return writer.op("RotaryEmbedding", [x, cos, sin, positions], {"num_heads": heads})

    table = writer.weight("embedding", sizes.vocabulary, hidden)
    x = writer.embedding(table, ids, sizes.vocabulary, hidden)
    for block in range(sizes.blocks):
        normed = writer.norm(f"{block}.attention_norm", x, hidden)
        query = rotated(linear(block, "query", normed, hidden, hidden), sizes.heads)
        key = rotated(linear(block, "key", normed, key_value, hidden), sizes.key_value_heads)
        value = linear(block, "value", normed, key_value, hidden)
        past = [_input(f"past_key_values.{block}.{part}", ir.DataType.FLOAT, cached) for part in ("key", "value")]
        attended, *present = writer.op_multi_out(
            "Attention",
            [query, key, value, None, *past],
            {"q_num_heads": sizes.heads, "kv_num_heads": sizes.key_value_heads, "is_causal": 1},
            num_outputs=3,
        )
        for part, output in zip(("key", "value"), present, strict=True):
            _declare(output, f"present.{block}.{part}", [*cached[:2], "total", cached[3]])
        inputs += past
        outputs += present
        x = writer.op("Add", [x, linear(block, "output", attended, hidden, hidden)])
        normed = writer.norm(f"{block}.mlp_norm", x, hidden)
        gate = linear(block, "gate", normed, sizes.mlp, hidden)
        up = linear(block, "up", normed, sizes.mlp, hidden)
        product = writer.op("Mul", [writer.op("Mul", [gate, writer.op("Sigmoid", [gate])]), up])
        x = writer.op("Add", [x, linear(block, "down", product, hidden, sizes.mlp)])
    logits = writer.linear(table, writer.norm("norm", x, hidden), sizes.vocabulary, hidden, "head", None)
    _declare(logits, "logits", ["batch", "length", sizes.vocabulary])
    graph = ir.Graph(
        inputs,
        [logits, *outputs],
        nodes=writer.nodes,
        initializers=writer.initializers,
        opset_imports={"": OPSET, DOMAIN: VERSION},
        name="llama",
    )
    model = ir.Model(graph, ir_version=IR_VERSION)
    pipelines.run(pipelines.after_packing(), model)
    model.functions.clear()  # the library has the operators
    return model


def _input(name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _declare(output: ir.Value, name: str, shape: list[int | str]) -> None:
    output.name, output.type, output.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)


class Decoder:
    """A session that writes tokens greedily; its keys and values stay inside ONNX Runtime."""

    def __init__(self, path: Path, sizes: Llama, threads: int, profile: Path | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.register_custom_ops_library(str(ops_library()))
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._sizes = sizes
        self.reset()

    def reset(self) -> None:
        """Forget all tokens."""
        nothing = np.empty((1, self._sizes.key_value_heads, 0, self._sizes.head_size), np.float32)
        self._past = {
            name: OrtValue.ortvalue_from_numpy(nothing)
            for name in (value.name for value in self._session.get_inputs())
            if name.startswith("past_key_values.")
        }
        self._length = 0

    def step(self, tokens: tuple[int, ...]) -> np.ndarray:
        """Logits [length, vocabulary] of these tokens after those before."""
        positions = np.arange(self._length, self._length + len(tokens))
        fresh = {"input_ids": np.array([tokens]), "position_ids": positions[None]}
        names = ["logits", *(name.replace("past_key_values", "present") for name in self._past)]
        feed = {name: OrtValue.ortvalue_from_numpy(array) for name, array in fresh.items()}
        logits, *present = self._session.run_with_ort_values(names, feed | self._past)
        self._past = dict(zip(self._past, present, strict=True))
        self._length += len(tokens)
        return np.asarray(logits.numpy()[0])

    def seconds(self, tokens: int) -> list[float]:
        """Of each of `tokens` steps that follow the prompt."""
        self.reset()
        token, seconds = int(self.step(PROMPT)[-1].argmax()), []
        for _ in range(tokens):
            start = time.perf_counter()
            token = int(self.step((token,))[-1].argmax())
            seconds.append(time.perf_counter() - start)
        time.sleep(REST)
        return seconds

    def profiled_runs(self) -> list[dict[str, float]]:
        """For each run until now, the seconds of all nodes of an operator, by its name; ends the profiling."""
        runs, run = [], defaultdict[str, float](float)
        for event in json.loads(Path(self._session.end_profiling()).read_bytes()):
            if event["name"].endswith("_kernel_time"):
                run[event["args"]["op_name"]] += 1e-6 * event["dur"]
            elif event["name"] == "model_run":
                runs.append(dict(run))
                run.clear()
        return runs


def bare_products(library: Library, model: ir.Model, scheme: Scheme) -> tuple[list[MatMul], list[np.ndarray]]:
    """The model's products as the C library's, M = 1, in the model's order; and the arrays that they point to."""
    assert scheme.activation
    kernels, rng = library.kernels(None), np.random.default_rng(0)
    products, kept = [], []
    for node in model.graph:
        if not _is_product(node):
            continue
        N, K = (node.attributes[name].as_int() for name in ("N", "K"))
        tensors = {}
        for value in node.inputs[1:-1]:
            assert value and value.name and value.const_value
            tensors[value.name.rpartition(".")[2]] = value.const_value.numpy()
        a = rng.standard_normal((1, K), dtype=np.float32)
        gated = node.op_type.startswith("SwiGlu")
        product, arrays = library.product(kernels, scheme.format, scheme.activation, a, tensors, N, gated=gated)
        products.append(product)
        kept += arrays
    return products, kept


def _is_product(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type.startswith(("MatMul", "SwiGlu"))


def product_bytes(model: ir.Model, scheme: Scheme) -> int:
    """Packed bytes that a token's products read."""
    products = filter(_is_product, model.graph)
    return sum(packed_bytes(scheme.format, *(node.attributes[n].as_int() for n in ("N", "K"))) for node in products)


def measure(library: Library, path: Path, sizes: Llama, scheme: Scheme, threads: int, tokens: int) -> list[str]:
    """Cells of a row of the table."""
    model = load_model(path)  # bare kernels read the same mapped pages as the sessions
    products, _kept = bare_products(library, model, scheme)
    plain, profiled = Decoder(path, sizes, threads), Decoder(path, sizes, threads, path.with_name("profile"))
    steps, bare = [], []
    for _ in range(ROUNDS):
        steps += plain.seconds(tokens)
        profiled.seconds(tokens)
        bare.append(float(np.median(library.time_in_turn(products, threads, tokens).sum(1))))
    runs = [run for i, run in enumerate(profiled.profiled_runs()) if i % (tokens + 1)]  # without the prompts
    packed = {name for name, operator in OPERATORS.items() if operator.kind}
    ours = [sum(seconds for operator, seconds in run.items() if operator in packed) for run in runs]
    of_rounds = [statistics.median(ours[i * tokens : (i + 1) * tokens]) for i in range(ROUNDS)]
    others = {name: statistics.median(run[name] for run in runs) for name in runs[0] if name not in packed}
    slowest = sorted(others, key=lambda name: others[name], reverse=True)[:5]
    token = statistics.median(steps)
    return [
        str(threads),
        f"{1e3 * token:.2f}",
        f"{1 / token:.0f}",
        f"{product_bytes(model, scheme) / token / 1e9:.1f}",
        f"{1e3 * statistics.median(of_rounds):.3f}",
        f"{1e3 * statistics.median(bare):.3f}",
        f"{statistics.median(mine / kernels for mine, kernels in zip(of_rounds, bare, strict=True)):.3f}",
        f"{1e3 * sum(others.values()):.3f}",
        ", ".join(f"{name} {1e3 * others[name]:.3f}" for name in slowest),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemes", nargs="+", default=["int3g128/a8"])
    parser.add_argument("--blocks", type=int, default=Llama.blocks)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokens", type=int, default=32, help="decoded in each round")
    arguments = parser.parse_args()
    sizes, library = replace(Llama(), blocks=arguments.blocks), Library()
    version = f"{library.name(library.kernels(None))}, onnxruntime {onnxruntime.__version__}"
    shape = f"{sizes.blocks} blocks, hidden {sizes.hidden}, MLP {sizes.mlp}"
    table = Table(title=f"{shape}; {version}; milliseconds a token")
    for column in ("scheme", "threads", "token", "tokens/s", "GB/s", "ours", "kernels", "over", "others"):
        table.add_column(column, justify="left" if column == "scheme" else "right", no_wrap=True)
    table.add_column("of which")
    for name in arguments.schemes:
        scheme = Scheme.parse(name)
        with TemporaryDirectory() as folder:
            save_model(build(sizes, scheme), folder)
            for threads in arguments.threads:
                cells = measure(library, Path(folder, "model.onnx"), sizes, scheme, threads, arguments.tokens)
                table.add_row(name, *cells)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
