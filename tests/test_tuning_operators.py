"""Every operator in torch against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from qxcompiler.derivatives.contrib import CONTRIB_OPERATORS
from qxcompiler.derivatives.operators import OPERATORS

RNG = np.random.default_rng(0)
ELEMENT = helper.np_dtype_to_tensor_dtype


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return (RNG.random(shape) + 0.1).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def flags(*shape: int) -> np.ndarray:
    return RNG.random(shape) > 0.5


X = floats(2, 3, 4)
SPECIAL = np.array([1, -2, np.inf, -np.inf, np.nan, 0], np.float32)
ROW, IMAGE = floats(4), floats(2, 4, 7, 6)
Q, K, V, PAST = floats(2, 4, 3, 8), floats(2, 2, 5, 8), floats(2, 2, 5, 8), floats(2, 2, 2, 8)

# operator, inputs, attributes
CASES = [
    *((name, [X], {}) for name in ("Abs", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid")),
    *((name, [X], {}) for name in ("HardSwish", "Identity", "LeakyRelu", "Neg", "Reciprocal", "Relu", "Round")),
    *((name, [X], {}) for name in ("Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tanh", "Dropout")),
    *((name, [positive(2, 3)], {}) for name in ("Log", "Sqrt")),
    *((name, [SPECIAL], {}) for name in ("IsInf", "IsNaN")),
    *((name, [X, ROW], {}) for name in ("Add", "Div", "Mul", "Sub", "Max", "Min", "Sum", "Mean")),
    *((name, [X, ROW], {}) for name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    *((name, [X, ROW, floats(3, 1)], {}) for name in ("Max", "Min", "Sum", "Mean")),
    *((name, [flags(3, 4), flags(4)], {}) for name in ("And", "Or")),
    ("Not", [flags(3, 4)], {}),
    ("Elu", [X], {"alpha": 0.3}),
    ("LeakyRelu", [X], {"alpha": 0.3}),
    ("HardSigmoid", [X], {"alpha": 0.3, "beta": 0.4}),
    ("Gelu", [X], {"approximate": "tanh"}),
    ("PRelu", [X, positive(4)], {}),
    ("Round", [np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)], {}),
    ("Div", [ints(7, -7, 7), ints(2, 2, -2)], {}),
    ("Mod", [ints(7, -7, 7), ints(3, 3, -3)], {}),
    ("Mod", [X, positive(4)], {"fmod": 1}),
    ("Pow", [X, np.float32(2)], {}),
    ("Pow", [X, np.float32(3)], {}),
    ("Pow", [positive(2, 3), np.array([[0.5]], np.float32)], {}),
    ("Pow", [positive(2, 3), positive(3)], {}),
    ("Pow", [X, ints(2)], {}),
    ("Clip", [X], {}),
    ("Clip", [X, np.float32(-0.5), np.float32(0.5)], {}),
    ("Clip", [X, None, np.float32(0.5)], {}),
    *(("Cast", [3 * X], {"to": getattr(TensorProto, to)}) for to in ("INT64", "INT32", "BOOL", "DOUBLE")),
    ("Cast", [ints(0, 1, 2)], {"to": TensorProto.FLOAT}),
    ("Where", [flags(3, 1), X, ROW], {}),
    # products
    ("MatMul", [X, floats(4, 5)], {}),
    ("MatMul", [floats(2, 1, 3, 4), floats(5, 4, 2)], {}),
    ("MatMul", [ROW, floats(4, 5)], {}),
    ("Gemm", [floats(3, 4), floats(4, 5)], {}),
    ("Gemm", [floats(4, 3), floats(5, 4), floats(5)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Einsum", [X, floats(2, 5, 4)], {"equation": "bik,bjk->bij"}),
    ("Conv", [IMAGE, floats(6, 4, 3, 3)], {}),
    ("Conv", [IMAGE, floats(6, 2, 3, 2), floats(6)], {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ("Conv", [IMAGE, floats(6, 4, 3, 2), floats(6)], {"dilations": [1, 2]}),
    ("Conv", [IMAGE, floats(4, 4, 3, 2)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", [IMAGE, floats(4, 4, 3, 2)], {"auto_pad": "SAME_LOWER"}),
    ("Conv", [floats(2, 4, 9), floats(3, 4, 2)], {"pads": [1, 1]}),
    # norms and reductions
    *(
        (name, [X, *axes], attributes)
        for name in sorted(name for name in OPERATORS if name.startswith("Reduce"))
        for axes, attributes in (
            ([], {}),
            ([ints(-1)], {}),
            ([ints(0, 2)], {"keepdims": 0}),
            ([], {"noop_with_empty_axes": 1, "keepdims": 0}),
        )
    ),
    ("ArgMax", [X], {"axis": 1, "keepdims": 0}),
    ("ArgMin", [X], {"axis": -1}),
    ("Softmax", [X], {}),
    ("Softmax", [X], {"axis": 1}),
    ("LogSoftmax", [X], {"axis": 1}),
    ("LayerNormalization", [X, ROW, floats(4)], {}),
    ("SimplifiedLayerNormalization", [X, ROW], {"epsilon": 1e-2}),
    ("LayerNormalization", [X, floats(3, 4)], {"axis": 1, "epsilon": 1e-2}),
    ("RMSNormalization", [X, ROW], {"epsilon": 1e-2}),
    ("BatchNormalization", [IMAGE, floats(4), floats(4), floats(4), positive(4)], {}),
    ("InstanceNormalization", [IMAGE, floats(4), floats(4)], {}),
    ("GroupNormalization", [IMAGE, floats(4), floats(4)], {"num_groups": 2}),
    ("Attention", [Q, K, V], {}),
    ("Attention", [Q, K, V], {"is_causal": 1, "scale": 0.3}),
    ("Attention", [Q, K, V, flags(2, 1, 3, 5) | (np.arange(5) == 0)], {}),
    ("Attention", [Q, K, V, flags(2, 1, 3, 5) & (np.arange(3) > 0)[:, None]], {}),  # a row without any key
    ("Attention", [Q, K, V, floats(3, 5)], {"softcap": 2.0}),
    ("Attention", [Q, K, V, None, PAST, PAST[..., ::-1].copy()], {"is_causal": 1}),
    ("Attention", [Q, K, V, floats(2, 4, 3, 7), PAST, PAST[..., ::-1].copy()], {}),
    (
        "Attention",
        [floats(2, 3, 32), floats(2, 5, 16), floats(2, 5, 16)],
        {"q_num_heads": 4, "kv_num_heads": 2, "is_causal": 1},
    ),
    ("RotaryEmbedding", [Q, floats(2, 3, 4), floats(2, 3, 4)], {}),
    ("RotaryEmbedding", [Q, floats(9, 4), floats(9, 4), RNG.integers(0, 9, (2, 3))], {"interleaved": 1}),
    (
        "RotaryEmbedding",
        [floats(2, 3, 32), floats(9, 3), floats(9, 3), RNG.integers(0, 9, (2, 3))],
        {"num_heads": 4, "rotary_embedding_dim": 6},
    ),
    ("Swish", [X], {"alpha": 0.5}),
    ("CumSum", [X, ints(1)], {}),
    ("CumSum", [X, ints(-1)], {"exclusive": 1, "reverse": 1}),
    ("GlobalAveragePool", [IMAGE], {}),
    # shapes, and what is moved
    ("Shape", [X], {}),
    ("Shape", [X], {"start": 1, "end": -1}),
    ("Size", [X], {}),
    ("Reshape", [X, ints(0, -1)], {}),
    ("Reshape", [X, ints(4, 3, 2)], {}),
    ("Flatten", [X], {"axis": 2}),
    ("Flatten", [X], {"axis": -1}),
    ("Flatten", [X], {"axis": 0}),
    ("Squeeze", [floats(1, 3, 1)], {}),
    ("Squeeze", [floats(1, 3, 1), ints(-1)], {}),
    ("Unsqueeze", [X, ints(0, -1)], {}),
    ("Transpose", [X], {}),
    ("Transpose", [X], {"perm": [1, 2, 0]}),
    ("Concat", [X, floats(2, 1, 4)], {"axis": 1}),
    ("Split", [floats(7, 2)], {"num_outputs": 3}),
    ("Split", [floats(2, 7), ints(1, 2, 4)], {"axis": 1}),
    ("Slice", [floats(7, 8), ints(1, -3), ints(1 << 62, -1)], {}),
    ("Slice", [floats(7, 8), ints(-1), ints(-(1 << 62)), ints(1), ints(-3)], {}),
    ("Slice", [floats(7, 8), ints(5), ints(1), ints(0), ints(-2)], {}),
    ("Slice", [floats(7, 8), ints(1), ints(6), ints(-1), ints(2)], {}),
    ("Gather", [X, ints(0, -1)], {"axis": 1}),
    ("Gather", [X, np.array([[0, 1], [1, 0]])], {}),
    ("Gather", [ints(5, 6, 7), np.array(2)], {}),
    ("GatherElements", [X, RNG.integers(-3, 3, (2, 2, 4))], {"axis": 1}),
    ("GatherND", [X, np.array([[0, 1], [1, -1]])], {}),
    ("GatherND", [X, np.array([[1], [0]])], {"batch_dims": 1}),
    ("ScatterND", [X, np.array([[0, 1], [1, -1]]), floats(2, 4)], {}),
    ("ScatterND", [X, np.array([[0, 1], [0, 1]]), floats(2, 4)], {"reduction": "add"}),
    ("Expand", [floats(3, 1), ints(2, 1, 4)], {}),
    ("Tile", [X, ints(1, 2, 3)], {}),
    *(("Pad", [X, ints(0, 1, 2, 1, 0, 1)], {"mode": mode}) for mode in ("constant", "edge", "reflect", "wrap")),
    ("Pad", [X, ints(1, 2), np.float32(3), ints(-1)], {}),
    ("ConstantOfShape", [ints(2, 3)], {"value": numpy_helper.from_array(np.array([7], np.int64))}),
    ("ConstantOfShape", [ints(2, 3)], {}),
    ("Range", [np.array(1), np.array(9), np.array(3)], {}),
    ("Trilu", [X], {}),
    ("Trilu", [X, np.array(-1)], {"upper": 0}),
]  # fmt: skip


# the same of onnxruntime's own
LENGTHS, TOTAL = np.array([4, 4], np.int32), np.array(5, np.int32)  # of 5 keys
ANGLES, KEPT = [floats(9, 8), floats(9, 8)], [floats(1, 2, 2, 16), floats(1, 2, 2, 16)]
GROUPED = {"num_heads": 4, "kv_num_heads": 2}
CONTRIB = [
    ("BiasGelu", [X, ROW], {}),
    ("FastGelu", [X], {}),
    ("FastGelu", [X, ROW], {}),
    ("Gelu", [X], {}),
    ("QuickGelu", [X], {}),
    ("SkipLayerNormalization", [X, floats(2, 3, 4), ROW, floats(4), floats(4)], {"epsilon": 1e-5}),
    ("SkipLayerNormalization", [X, floats(2, 3, 4), ROW], {"epsilon": 1e-5}),
    ("SkipSimplifiedLayerNormalization", [X, floats(2, 3, 4), ROW], {"epsilon": 1e-5}),
    ("SkipSimplifiedLayerNormalization", [X, floats(2, 3, 4), ROW, floats(4)], {"epsilon": 1e-5}),
    ("RotaryEmbedding", [floats(2, 4, 3, 16), np.array([2]), *ANGLES], {}),
    ("RotaryEmbedding", [floats(2, 3, 64), RNG.integers(0, 9, (2, 3)), *ANGLES], {"interleaved": 1}),
    (
        "GroupQueryAttention",
        [floats(2, 5, 32), floats(2, 5, 16), floats(2, 5, 16), None, None, LENGTHS, TOTAL],
        GROUPED,
    ),
    (
        "GroupQueryAttention",
        [floats(2, 5, 128), None, None, floats(2, 2, 0, 16), floats(2, 2, 0, 16), LENGTHS, TOTAL, *ANGLES],
        GROUPED | {"do_rotary": 1, "local_window_size": 2, "scale": 0.5},
    ),
    (
        "GroupQueryAttention",
        [floats(1, 3, 64), floats(1, 3, 32), floats(1, 3, 32), *KEPT, LENGTHS[:1], TOTAL, *ANGLES],
        GROUPED | {"do_rotary": 1, "rotary_interleaved": 1, "softcap": 3.0},
    ),
    ("MultiHeadAttention", [floats(2, 3, 32), floats(2, 5, 32), floats(2, 5, 32)], {"num_heads": 4}),
    (
        "MultiHeadAttention",
        [floats(2, 5, 32), floats(2, 5, 32), floats(2, 5, 32), floats(96), None, floats(1, 4, 5, 5)],
        {"num_heads": 4, "unidirectional": 1, "scale": 0.3},
    ),
    (
        "MultiHeadAttention",
        [floats(2, 3, 32), floats(2, 5, 32), floats(2, 5, 32), None, np.array([[1] * 5, [1] * 3 + [0] * 2], np.int32)],
        {"num_heads": 4},
    ),
]

OPSETS = {"GroupNormalization": 21, "Swish": 24}  # that they came with, where later than 20
OPSETS |= dict.fromkeys(("Attention", "RMSNormalization", "RotaryEmbedding"), 23)


def run_in_onnxruntime(
    op_type: str, inputs: list, attributes: dict, results: list[str], domain: str = ""
) -> list[np.ndarray]:
    names = [f"x{index}" if array is not None else "" for index, array in enumerate(inputs)]
    given = {name: np.asarray(array) for name, array in zip(names, inputs, strict=True) if name}
    graph = helper.make_graph(
        [helper.make_node(op_type, names, results, domain=domain, **attributes)],
        "g",
        [helper.make_tensor_value_info(name, ELEMENT(array.dtype), array.shape) for name, array in given.items()],
        [helper.make_empty_tensor_value_info(name) for name in results if name],
    )  # fmt: skip
    opset = OPSETS.get(op_type, 20)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, given)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"), CASES, ids=[f"{index}-{case[0]}" for index, case in enumerate(CASES)]
)
def test_an_operator(op_type, inputs, attributes):
    tensors = [None if array is None else torch.from_numpy(np.asarray(array)) for array in inputs]
    node = ir.from_proto(helper.make_node(op_type, [], [], **attributes))
    computed = OPERATORS[op_type](*tensors, **{name: each.value for name, each in node.attributes.items()})
    results = computed if isinstance(computed, tuple) else (computed,)
    names = [f"y{index}" for index in range(len(results))]
    for y, y_ref in zip(results, run_in_onnxruntime(op_type, inputs, attributes, names), strict=True):
        assert y.numpy().dtype == y_ref.dtype
        np.testing.assert_allclose(y.numpy(), y_ref, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"), CONTRIB, ids=[f"{index}-{case[0]}" for index, case in enumerate(CONTRIB)]
)
def test_an_operator_of_onnxruntime(op_type, inputs, attributes):
    tensors = [None if array is None else torch.from_numpy(np.asarray(array)) for array in inputs]
    computed = CONTRIB_OPERATORS[op_type](*tensors, **attributes)
    results = list(computed) if isinstance(computed, tuple) else [computed]
    if op_type.startswith("Skip"):  # what lies between its first and last output has no kernel on the CPU
        results = [results[0], results[3]]
    names = ["y0", "", "", "y1"] if op_type.startswith("Skip") else [f"y{index}" for index in range(len(results))]
    for y, y_ref in zip(results, run_in_onnxruntime(op_type, inputs, attributes, names, "com.microsoft"), strict=True):
        assert y.numpy().dtype == y_ref.dtype
        np.testing.assert_allclose(y.numpy(), y_ref, rtol=2e-5, atol=3e-6)


def test_every_operator_is_tested():
    assert OPERATORS.keys() == {name for name, _, _ in CASES}
    assert CONTRIB_OPERATORS.keys() == {name for name, _, _ in CONTRIB}
