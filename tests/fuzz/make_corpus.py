"""Write the seeds that the fuzzer starts from to `tests/corpus`; run with `tests` on the path."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import graph_models
import numpy as np
import onnx
import yaml
from conftest import named_as_published
from onnx import numpy_helper
from tiny_onnx import save_tokenizer

import qxcompiler
from qxcompiler.targets import load_target

CORPUS = Path(__file__).parents[1] / "corpus"
VOCABULARY = 16
HEAD = '<ir_version: 8, opset_import: ["": 18, "own": 1]>'

BRANCHES = """
g (float[n, 16] x, bool up, int64 times) => (float[n, 16] y) {
  h = MatMul(x, first)
  s = If (up) <
    then_branch = a () => (float[n, 16] p) { p = MatMul(h, inner) },
    else_branch = c () => (float[n, 16] q) { r = Gemm<transB = 1>(h, inner, bias)
      q = Relu(r) }
  >
  truth = Constant<value = bool {1}>()
  y = Loop (times, truth, s) <
    body = l (int64 i, bool keep, float[n, 16] state) => (bool still, float[n, 16] next) {
      still = Identity(keep)
      next = If (keep) <
        then_branch = d () => (float[n, 16] t) { t = MatMul(state, deep) },
        else_branch = e () => (float[n, 16] u) { u = Identity(state) }
      >
    }
  >
}
"""
FUNCTIONS = """
g (float[n, 16] x) => (float[n, 16] y) {
  h = own.Layer<alpha = 0.5>(x, first)
  y = own.Layer<alpha = 0.25>(h, inner)
}
<domain: "own", opset_import: ["": 18, "own": 1]>
Layer <alpha> (a, w) => (b) {
  m = MatMul(a, w)
  b = LeakyRelu<alpha: float = @alpha>(m)
}
"""
CONVOLUTIONS = """
g (float[1, 3, 8, 8] image) => (float[1, 4] y) {
  a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(image, kernel)
  b = Relu(a)
  c = Conv<kernel_shape = [1, 1]>(b, pointwise, bias)
  d = GlobalAveragePool(c)
  e = Flatten(d)
  y = MatMul(e, last)
}
"""
HALF = """
g (float16[n, 16] x) => (float16[n, 16] y) {
  a = MatMul(x, half)
  y = Tanh(a)
}
"""
RECURRENT = """
g (float[s, b, 16] x) => (float[s, b, 16] z, string[1] word) {
  y, last = GRU<hidden_size = 16>(x, w, r)
  axis = Constant<value = int64[1] {1}>()
  flat = Squeeze(y, axis)
  z = MatMul(flat, inner)
  word = Constant<value = string[1] {"yes"}>()
}
"""
QUANTIZED = """
g (float[n, 16] x) => (float[n, 16] y) {
  w = DequantizeLinear<axis = 1>(codes, scales)
  a = MatMul(x, w)
  y = MatMul(a, inner)
}
"""

SIZES = """
g (float[n, 16] x) => (float[p, 16] y) {
  shape = Constant<value = int64[2] {3, 16}>()
  filled = ConstantOfShape<value = float[1] {0.5}>(shape)
  wide = Constant<value = int64[2] {2, 1}>()
  tiled = Tile(filled, wide)
  joined = Concat<axis = 0>(x, tiled)
  start = Constant<value = int64 {0}>()
  end = Constant<value = int64 {5}>()
  step = Constant<value = int64 {1}>()
  rows = Range(start, end, step)
  taken = Gather<axis = 0>(joined, rows)
  pads = Constant<value = int64[4] {0, 0, 2, 0}>()
  padded = Pad(taken, pads)
  y = MatMul(padded, inner)
}
"""


def model(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    found = onnx.parser.parse_model(HEAD + text)
    found.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.checker.check_model(found)
    return found


def main() -> None:
    """Write all seeds."""
    draws = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return draws.standard_normal(shape).astype(np.float32)

    CORPUS.mkdir(exist_ok=True)
    models = {
        "decoder": named_as_published(graph_models.llama(layers=2, width=16, vocabulary=VOCABULARY, hidden=32)[0]),
        "encoder": graph_models.bert(layers=1, width=16)[0],
        "vision": graph_models.vit(layers=1, width=16)[0],
        "branches": model(BRANCHES, first=weight(16, 16), inner=weight(16, 16), deep=weight(16, 16), bias=weight(16)),
        "functions": model(FUNCTIONS, first=weight(16, 16), inner=weight(16, 16)),
        "convolutions": model(
            CONVOLUTIONS,
            kernel=weight(16, 3, 3, 3),
            pointwise=weight(16, 16, 1, 1),
            bias=weight(16),
            last=weight(16, 4),
        ),
        "half": model(HALF, half=weight(16, 16).astype(np.float16)),
        "recurrent": model(RECURRENT, w=weight(1, 48, 16), r=weight(1, 48, 16), inner=weight(16, 16)),
        "sizes": model(SIZES, inner=weight(16, 16)),
        "quantized": model(
            QUANTIZED,
            codes=draws.integers(-127, 127, (16, 16)).astype(np.int8),
            scales=weight(16),
            inner=weight(16, 16),
        ),
    }
    old = model(HALF.replace("float16", "float"), half=weight(16, 16))
    old.opset_import[0].version = 11
    models["old"] = old
    for name, proto in models.items():
        (CORPUS / f"{name}.onnx").write_bytes(proto.SerializeToString(deterministic=True))
    onnx.save(
        model(FUNCTIONS, first=weight(16, 16), inner=weight(16, 16)),
        CORPUS / "external.onnx",
        save_as_external_data=True,
        location="external.bin",
        size_threshold=0,
    )
    save_tokenizer(CORPUS, VOCABULARY)
    words = " ".join(f"w{index}" for index in draws.integers(0, VOCABULARY, 60))
    (CORPUS / "words.txt").write_text(words)
    lines = [json.dumps({"text": words[start : start + 60]}) for start in range(0, 180, 60)]
    (CORPUS / "words.jsonl").write_text("\n".join(lines) + "\n")
    for name, arrays in {
        "decoder": {"input_ids": draws.integers(0, VOCABULARY, (4, 6))},
        "functions": {"x": weight(6, 16)},
        "sizes": {"x": weight(6, 2, 16)},
        "branches": {"x": weight(6, 16), "up": np.ones(6, bool), "times": np.full(6, 2)},
        "convolutions": {"image": weight(4, 3, 8, 8)},
    }.items():
        np.savez(CORPUS / f"{name}.npz", **arrays)
    (CORPUS / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 32}')
    (CORPUS / "generation_config.json").write_text('{"eos_token_id": [3], "bos_token_id": 1}')
    (CORPUS / "target.yaml").write_text(
        yaml.safe_dump(load_target("npu-int8").model_dump(exclude_none=True), sort_keys=False)
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        qxcompiler.compile(CORPUS / "functions.onnx", "cpu-x86", out, weights="int4g16a", quantizer="rtn")
        (CORPUS / "plan.yaml").write_bytes((out / "plan.yaml").read_bytes())
        packed = onnx.load(out / "model.onnx")
        (CORPUS / "packed.onnx").write_bytes(packed.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
