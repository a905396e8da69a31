"""Small ONNX models of the usual architectures, written by hand with random weights."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper


class Builder:
    """Collects nodes and weights; every method that adds something returns its value's name."""

    def __init__(self, opset: int = 18, seed: int = 0) -> None:
        self.opset = opset
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.functions: list[onnx.FunctionProto] = []
        self.domains = {"": opset}

    def constant(self, array: np.ndarray, name: str = "") -> str:
        name = name or f"c{len(self.initializers)}"
        self.initializers[name] = numpy_helper.from_array(np.asarray(array), name)
        return name

    def weight(self, *shape: int, name: str = "") -> str:
        return self.constant((self.random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32), name)

    def op(self, op_type: str, *inputs: str, name: str = "", outputs: int = 1, domain: str = "", **attributes):
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        name = name or f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, names, name=name, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        return self.constant(np.float32(value))

    def linear(self, x: str, k: int, n: int, bias: bool = False, name: str = "") -> str:
        y = self.op("MatMul", x, self.weight(k, n), name=name)
        return self.op("Add", y, self.weight(n)) if bias else y

    def rms_norm(self, x: str, width: int) -> str:
        mean = self.op("ReduceMean", self.op("Pow", x, self.scalar(2)), self.ints(-1), keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.scalar(1e-5)))
        return self.op("Mul", self.weight(width), self.op("Mul", x, self.op("Div", self.scalar(1), root)))

    def layer_norm(self, x: str, width: int) -> str:
        return self.op("LayerNormalization", x, self.weight(width), self.weight(width), axis=-1)

    def heads(self, x: str, count: int) -> str:
        """[B, S, H] to [B, count, S, H / count], batch and length taken from a `Shape`, as exporters do."""
        shape = self.op("Shape", x)
        lead = self.op("Slice", shape, self.ints(0), self.ints(2))
        full = self.op("Concat", lead, self.ints(count, -1), axis=0)
        return self.op("Transpose", self.op("Reshape", x, full), perm=[0, 2, 1, 3])

    def merge(self, x: str, width: int) -> str:
        return self.op("Reshape", self.op("Transpose", x, perm=[0, 2, 1, 3]), self.ints(0, 0, width))

    def attend(self, q: str, k: str, v: str, head_size: int, mask: str = "") -> str:
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self.op("Mul", scores, self.scalar(head_size**-0.5))
        if mask:
            scores = self.op("Add", scores, mask)
        return self.op("MatMul", self.op("Softmax", scores, axis=-1), v)

    def rotate(self, x: str, cos: str, sin: str, half: int) -> str:
        first = self.op("Slice", x, self.ints(0), self.ints(half), self.ints(-1))
        second = self.op("Slice", x, self.ints(half), self.ints(2 * half), self.ints(-1))
        turned = self.op("Concat", self.op("Neg", second), first, axis=-1)
        return self.op("Add", self.op("Mul", x, cos), self.op("Mul", turned, sin))

    def model(self, inputs: dict[str, tuple], outputs: list[str]) -> onnx.ModelProto:
        """Inputs: name to (dtype, shape)."""
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            list(self.initializers.values()),
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(*domain) for domain in self.domains.items()],
            functions=self.functions,
            ir_version=8,
        )


IDS = (TensorProto.INT64, ["batch", "length"])


def llama(layers: int = 2, tied: bool = True, width: int = 16, vocabulary: int = 40, hidden: int = 24):
    """Decoder: RMS norms, rotary positions, grouped-query attention with past, SwiGLU; unhelpful names."""
    b, heads, kv_heads = Builder(), 4, 2
    head = width // heads
    table = b.weight(vocabulary, width, name="table")
    inputs, outputs = {"ids": IDS, "positions": IDS}, []
    x = b.op("Gather", table, "ids")
    # Rotary angles: an outer product with a constant, and tables looked up by position.
    frequencies = b.constant((0.1 ** np.arange(head // 2)).astype(np.float32).reshape(1, head // 2, 1))
    row = b.op("Cast", b.op("Unsqueeze", "positions", b.ints(1)), to=TensorProto.FLOAT)
    angles = b.op("Transpose", b.op("MatMul", frequencies, row), perm=[0, 2, 1])
    angles = b.op("Unsqueeze", b.op("Concat", angles, angles, axis=-1), b.ints(1))
    cos, sin = b.op("Cos", angles), b.op("Sin", angles)
    length = b.op("Gather", b.op("Shape", x), b.ints(1))
    triangle = b.op("Trilu", b.op("Expand", b.scalar(-1e4), b.op("Concat", length, length, axis=0)), b.ints(1))
    for layer in range(layers):
        normed = b.rms_norm(x, width)
        q = b.heads(b.linear(normed, width, width), heads)
        k = b.heads(b.linear(normed, width, kv_heads * head), kv_heads)
        v = b.heads(b.linear(normed, width, kv_heads * head), kv_heads)
        q, k = b.rotate(q, cos, sin, head // 2), b.rotate(k, cos, sin, head // 2)
        for kind in "kv":
            inputs[f"past{layer}{kind}"] = (TensorProto.FLOAT, ["batch", kv_heads, "past", head])
        k = b.op("Concat", f"past{layer}k", k, axis=2)
        v = b.op("Concat", f"past{layer}v", v, axis=2)
        outputs += [k, v]
        repeat = b.constant(np.repeat(np.arange(kv_heads), heads // kv_heads))
        k, v = b.op("Gather", k, repeat, axis=1), b.op("Gather", v, repeat, axis=1)
        x = b.op("Add", x, b.linear(b.merge(b.attend(q, k, v, head, triangle), width), width, width))
        normed = b.rms_norm(x, width)
        gate, up = b.linear(normed, width, hidden), b.linear(normed, width, hidden)
        product = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)
        x = b.op("Add", x, b.linear(product, hidden, width))
    x = b.rms_norm(x, width)
    head_weight = b.op("Transpose", table, perm=[1, 0]) if tied else b.weight(width, vocabulary)
    logits = b.op("MatMul", x, head_weight)
    feeds = {
        "ids": b.random.integers(0, vocabulary, (2, 5)),
        "positions": np.tile(np.arange(5), (2, 1)),
        **{name: np.zeros((2, kv_heads, 0, head), np.float32) for name in inputs if name.startswith("past")},
    }
    return b.model(inputs, [logits, *outputs]), feeds


def bert(layers: int = 2, width: int = 16, opset: int = 18):
    """Encoder: norms after the additions, biases, GELU in parts, a pooler, no head."""
    b, heads, hidden = Builder(opset), 4, 24
    x = b.op("Add", b.op("Gather", b.weight(30, width), "ids"), b.op("Gather", b.weight(9, width), "positions"))
    x = b.layer_norm(x, width)
    mask = b.op("Cast", b.op("Unsqueeze", "mask", b.ints(1, 2)), to=TensorProto.FLOAT)
    mask = b.op("Mul", b.op("Sub", b.scalar(1), mask), b.scalar(-1e4))
    for _ in range(layers):
        q, k, v = (b.heads(b.linear(x, width, width, bias=True), heads) for _ in range(3))
        attended = b.merge(b.attend(q, k, v, width // heads, mask), width)
        x = b.layer_norm(b.op("Add", b.linear(attended, width, width, bias=True), x), width)
        y = b.linear(x, width, hidden, bias=True)
        erf = b.op("Erf", b.op("Div", y, b.scalar(2**0.5)))
        y = b.op("Mul", b.op("Mul", y, b.op("Add", erf, b.scalar(1))), b.scalar(0.5))
        x = b.layer_norm(b.op("Add", b.linear(y, hidden, width, bias=True), x), width)
    feeds = {
        "ids": b.random.integers(0, 30, (2, 5)),
        "positions": np.tile(np.arange(5), (2, 1)),
        "mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    }
    return b.model(dict.fromkeys(feeds, IDS), [x]), feeds


def gpt2(layers: int = 2, width: int = 16):
    """Decoder with one site for query, key and value, `Gemm` on flattened rows, GELU by tanh, untied head."""
    b, heads = Builder(), 4

    def gemm(x: str, k: int, n: int) -> str:
        flat = b.op("Gemm", b.op("Reshape", x, b.ints(-1, k)), b.weight(k, n), b.weight(n))
        lead = b.op("Slice", b.op("Shape", x), b.ints(0), b.ints(2))
        return b.op("Reshape", flat, b.op("Concat", lead, b.ints(n), axis=0))

    x = b.op("Gather", b.weight(30, width), "ids")
    for _ in range(layers):
        q, k, v = b.op("Split", gemm(b.layer_norm(x, width), width, 3 * width), outputs=3, axis=2, num_outputs=3)
        attended = b.attend(b.heads(q, heads), b.heads(k, heads), b.heads(v, heads), width // heads)
        x = b.op("Add", gemm(b.merge(attended, width), width, width), x)
        y = gemm(b.layer_norm(x, width), width, 32)
        cubic = b.op("Add", y, b.op("Mul", b.op("Pow", y, b.scalar(3)), b.scalar(0.044715)))
        tanh = b.op("Tanh", b.op("Mul", cubic, b.scalar(0.797885)))
        y = b.op("Mul", b.op("Mul", y, b.scalar(0.5)), b.op("Add", tanh, b.scalar(1)))
        x = b.op("Add", x, gemm(y, 32, width))
    logits = b.linear(b.layer_norm(x, width), width, 30)
    feeds = {"ids": b.random.integers(0, 30, (2, 5))}
    return b.model({"ids": IDS}, [logits]), feeds


def phi3(layers: int = 2, width: int = 16):
    """Decoder with one site for query, key and value (sliced) and one for gate and up (split)."""
    b, heads, hidden = Builder(), 4, 24
    x = b.op("Gather", b.weight(30, width), "ids")
    for _ in range(layers):
        qkv = b.linear(b.rms_norm(x, width), width, 3 * width)
        q, k, v = (
            b.heads(b.op("Slice", qkv, b.ints(i * width), b.ints((i + 1) * width), b.ints(2)), heads) for i in range(3)
        )
        x = b.op("Add", x, b.linear(b.merge(b.attend(q, k, v, width // heads), width), width, width))
        both = b.linear(b.rms_norm(x, width), width, 2 * hidden)
        gate, up = b.op("Split", both, outputs=2, axis=-1, num_outputs=2)
        product = b.op("Mul", up, b.op("Mul", gate, b.op("Sigmoid", gate)))
        x = b.op("Add", x, b.linear(product, hidden, width))
    logits = b.linear(b.rms_norm(x, width), width, 30)
    return b.model({"ids": IDS}, [logits]), {"ids": b.random.integers(0, 30, (2, 5))}


def encoder_decoder(layers: int = 3, width: int = 16):
    """Decoder layers of self-attention, cross-attention to a given encoder's output, and a ReLU MLP."""
    b, heads = Builder(), 4
    x = b.op("Gather", b.weight(30, width), "ids")

    def attention(source: str, target: str) -> str:
        q = b.heads(b.linear(target, width, width), heads)
        k, v = (b.heads(b.linear(source, width, width), heads) for _ in range(2))
        return b.linear(b.merge(b.attend(q, k, v, width // heads), width), width, width)

    for _ in range(layers):
        normed = b.layer_norm(x, width)
        x = b.op("Add", x, attention(normed, normed))
        x = b.op("Add", x, attention("encoded", b.layer_norm(x, width)))
        y = b.op("Relu", b.linear(b.layer_norm(x, width), width, 32))
        x = b.op("Add", x, b.linear(y, 32, width))
    logits = b.linear(b.layer_norm(x, width), width, 30)
    encoded = (TensorProto.FLOAT, ["batch", "frames", width])
    feeds = {
        "ids": b.random.integers(0, 30, (2, 5)),
        "encoded": b.random.standard_normal((2, 7, width)).astype(np.float32),
    }
    return b.model({"ids": IDS, "encoded": encoded}, [logits]), feeds


def vit(layers: int = 2, width: int = 16):
    """Image encoder: patches by convolution, key before query, a classifier on the first token."""
    b, heads = Builder(), 4
    patches = b.op("Conv", "pixels", b.weight(width, 3, 4, 4), kernel_shape=[4, 4], strides=[4, 4])
    x = b.op("Transpose", b.op("Reshape", patches, b.ints(0, width, -1)), perm=[0, 2, 1])
    x = b.op("Add", x, b.weight(1, 4, width))
    for _ in range(layers):
        normed = b.layer_norm(x, width)
        k, v, q = (b.heads(b.linear(normed, width, width, bias=True), heads) for _ in range(3))
        x = b.op("Add", x, b.linear(b.merge(b.attend(q, k, v, width // heads), width), width, width, bias=True))
        y = b.op("Relu", b.linear(b.layer_norm(x, width), width, 32, bias=True))
        x = b.op("Add", x, b.linear(y, 32, width, bias=True))
    first = b.op("Gather", b.layer_norm(x, width), b.constant(np.int64(0)), axis=1)
    logits = b.op("Gemm", first, b.weight(5, width), b.weight(5), transB=1)
    pixels = (TensorProto.FLOAT, ["batch", 3, 8, 8])
    return b.model({"pixels": pixels}, [logits]), {"pixels": b.random.standard_normal((2, 3, 8, 8)).astype(np.float32)}


def mlp(widths: tuple[int, ...] = (8, 12, 10, 6, 4)):
    """A chain of linear layers with ReLU between."""
    b, x = Builder(), "x"
    for index, (k, n) in enumerate(pairwise(widths)):
        x = b.linear(b.op("Relu", x) if index else x, k, n, bias=True)
    feeds = {"x": b.random.standard_normal((3, widths[0])).astype(np.float32)}
    return b.model({"x": (TensorProto.FLOAT, ["batch", widths[0]])}, [x]), feeds


ARCHITECTURES = {builder.__name__: builder for builder in (llama, bert, gpt2, phi3, encoder_decoder, vit, mlp)}


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of a model by name."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    results = session.run(None, {name: array for name, array in feeds.items() if name in wanted})
    return dict(zip((value.name for value in session.get_outputs()), results, strict=True))
