"""Random models of one packed operator, sound ones and broken ones, and what has to become of each.

A `Call` is a node with its attributes and inputs. `draw` makes a sound one and lets some of `BREAKS` change it; `flaw`
tells, by the operators' definition, whether it must still run; `build` writes the model and what is fed to it.
"""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
from attention_models import bits_of, draw_inputs, expected_attention, kept_attention
from norm_models import draw_norm_inputs, expected_norm
from onnx import TensorProto, helper
from operator_models import (
    FAMILIES,
    SWIGLU_TOLERANCE,
    TOLERANCE,
    expected_matmul,
    expected_swiglu,
    format_of,
    random_weight,
)

from qxcompiler.formats import FLOAT16, GROUP_SIZES, KERNEL_ACTIVATIONS, TWO_LEVEL, hadamard
from qxcompiler.packing import LAYOUT, pack
from qxcompiler.runtime_ops.attention import ATTENTION_TYPES
from qxcompiler.runtime_ops.norm import NORM_TYPES
from qxcompiler.runtime_ops.operators import DOMAIN, OPERATORS, VERSION, function_for, operator_name

__all__ = ["Call", "Run", "build", "draw", "fed_otherwise", "flaw"]

OPSET = 18
HALF_TOLERANCE = 2e-3
BLOCK_SIZES = (8, 16, 32, 64)
LARGEST = 10**6  # elements
SIZES = (0, -1, 1, 2, 15, 16, 17, 32, 33, 48, 64, 2**31, 2**32, 2**40, 2**40 + 1, 2**61, 2**62, 2**63 - 1, -(2**63))
DTYPES = (
    "float32",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "int32",
    "int64",
    "bool",
    "float16",
    "float64",
    "uint32",
    "uint64",
)
# huge beside zero: no memory, but products that overflow
EMPTY_SHAPES = ((0,), (0, 0), (2**31, 0), (0, 2**59), (2**40, 2**19, 0), (2**40, 0, 2**19), (0, 1, 2**40))
TEXTS = (
    b"",
    b"a4",
    b"A8",
    b"a8\0",
    b"tile16.v1\0",
    b"tile16.v2",
    b"tile16",
    b"\xff\xfe\x80",
    b"\n%s%n{}",
    b"x" * 100_000,
)


@dataclass
class Input:
    """One input of the node: a constant in the model, a constant in another file, or fed at every run."""

    name: str
    array: np.ndarray
    place: str  # "constant", "external" or "fed"
    missing_bytes: int = 0  # of a constant, whose shape then promises more than there is
    is_empty_name: bool = False


@dataclass
class Call:
    """A node; sound until a break changes it."""

    operator: str
    attributes: dict[str, object]  # int, bytes, or what no operator takes
    inputs: list[Input]
    with_body: bool
    outputs: list[str] = field(default_factory=lambda: ["Y"])
    output_type: int = TensorProto.FLOAT
    output_shape: list[int] | None = None  # as the model declares it, true or not
    node_name: str = "the_node"
    is_fed_other_types: bool = False  # than the model declares
    breaks: list[str] = field(default_factory=list)
    expected: np.ndarray | None = None  # float64, of the sound call
    tolerance: float = 0

    @property
    def data(self) -> Input:
        return self.inputs[0]


@dataclass
class Run:
    """What a process with a session needs, and nothing of ours."""

    model: bytes
    external: bytes | None
    feeds: list[dict[str, np.ndarray]]  # the session's runs
    threads: int
    optimize: bool
    guarded: bool  # the fed arrays end at pages that cannot be read


def draw(rng: random.Random) -> Call:
    """A sound call, or, three times in four, one with one to three things changed."""
    call = _sound(rng)
    if rng.random() < 0.75:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            change = rng.choice(BREAKS)
            call.breaks.append(change.__name__.strip("_"))
            change(call, rng)
        call.expected = None
    return call


def fed_otherwise(call: Call, rng: random.Random) -> Call:
    """The same model, in a run that is fed arrays of other sizes, types or numbers."""
    other = copy.deepcopy(call)
    fed = replace(other, inputs=[tensor for tensor in other.inputs if tensor.place == "fed"])
    if fed.inputs:
        change = rng.choice(FED_BREAKS)
        types = [tensor.array.dtype for tensor in fed.inputs]
        change(fed, rng)
        other.is_fed_other_types = types != [tensor.array.dtype for tensor in fed.inputs]
        other.breaks.append(f"fed {change.__name__.strip('_')}")
        other.expected = None
    return other


def _sound(rng: random.Random) -> Call:
    kind = rng.random()
    others = ((0.1, _sound_rotation), (0.3, _sound_attention), (0.4, _sound_norm))
    return next((make for limit, make in others if kind < limit), _sound_product)(rng)


def _sound_rotation(rng: random.Random) -> Call:
    size = rng.choice(BLOCK_SIZES)
    shape = (*rng.choice(((), (1,), (0,), (2, 3), (rng.randint(1, 140),))), size * rng.randint(0, 20))
    x = np.random.default_rng(rng.randrange(2**31)).standard_normal(shape)
    place = rng.choice(("fed", "fed", "constant", "external"))
    x = x.astype(rng.choice((np.float32, np.float16)))
    call = Call("Hadamard", {"block_size": size}, [Input("X", x, place)], with_body=rng.random() < 0.5)
    blocks = x.astype(np.float64).reshape(-1, size)
    call.expected = (blocks @ hadamard(size).double().numpy()).reshape(shape)
    call.tolerance = 2e-6
    if x.dtype == np.float16:
        call.tolerance, call.output_type = HALF_TOLERANCE, TensorProto.FLOAT16
    return call


def _sound_attention(rng: random.Random) -> Call:
    operator = rng.choice(ATTENTION_TYPES).name
    groups, size, batch, length = (rng.randint(1, most) for most in (3, 40, 2, 70))
    heads, before = groups * rng.randint(1, 4), rng.randint(0, 300)
    case = draw_inputs(
        operator,
        rng.randrange(2**31),
        heads,
        groups,
        size,
        batch,
        length,
        keys=length + before,
        past=before + rng.choice((0, 3, length)),
        rotary=2 * rng.randint(0, size // 2),
        mask=(rng.choice((1, batch)), rng.choice((1, heads)), rng.choice((1, length))),
        dtype=rng.choice((np.float32, np.float16)),
    )
    attributes: dict[str, object] = {"num_heads": heads, "kv_num_heads": groups, "scale": 0.3, "softcap": 0.0}
    inputs = [Input(name, array, rng.choice(("fed", "fed", "constant", "external"))) for name, array in case.items()]
    call = Call(operator, attributes, inputs, with_body=rng.random() < 0.5, outputs=list(OPERATORS[operator].outputs))
    bits = bits_of(operator)
    call.expected = kept_attention(case, heads, groups, bits) if bits else expected_attention(case, heads, groups)[0]
    call.tolerance = {0: 1e-5, 8: 2e-3, 4: 4e-2}[bits]
    if case["query"].dtype == np.float16:
        call.tolerance, call.output_type = max(call.tolerance, HALF_TOLERANCE), TensorProto.FLOAT16
    return call


def _sound_norm(rng: random.Random) -> Call:
    operator = rng.choice(NORM_TYPES).name
    shape = (*rng.choice(((), (1,), (0,), (2, 3), (rng.randint(1, 140),))), rng.choice((rng.randint(2, 70), 300)))
    case = draw_norm_inputs(operator, rng.randrange(2**31), shape, rng.choice((np.float32, np.float16)))
    inputs = [Input(name, array, rng.choice(("fed", "fed", "constant", "external"))) for name, array in case.items()]
    call = Call(operator, {"epsilon": 1e-5}, inputs, rng.random() < 0.5, list(OPERATORS[operator].outputs))
    call.expected = expected_norm(case)[0]
    call.tolerance = 1e-5
    if case["X"].dtype == np.float16:
        call.tolerance, call.output_type = HALF_TOLERANCE, TensorProto.FLOAT16
    return call


def _sound_product(rng: random.Random) -> Call:
    kind = rng.choice(("MatMul", "MatMul", "SwiGlu", "Gather"))
    fmt = format_of(rng.choice(FAMILIES), rng.choice((*GROUP_SIZES, None)))
    N = 32 * rng.randint(1, 3) if kind == "SwiGlu" else rng.choice((1, rng.randint(1, 100), 64))
    K = rng.choice((1, rng.randint(1, 40), rng.randint(1, 600), 128))
    weight = random_weight(fmt, N, K, rng.randrange(2**31))
    draws = np.random.default_rng(rng.randrange(2**31))
    leading = rng.choice(((), (1,), (0,), (2, 0, 3), (2, 3), (rng.randint(1, 140),), (1, 1, 2, 1)))
    attributes: dict[str, object] = {"K": K, "N": N, "group_size": fmt.group_length(K), "layout": LAYOUT.encode()}
    places = rng.choice((["constant"], ["fed"], ["external"], ["constant", "external", "fed"]))
    inputs = [Input(name, tensor.numpy(), rng.choice(places)) for name, tensor in pack(weight).tensors.items()]
    call = Call(operator_name(fmt, kind), attributes, inputs, with_body=rng.random() < 0.5)
    data_place = rng.choice(("fed", "fed", "fed", "constant", "external"))
    if kind == "Gather":
        indices = draws.integers(-N, N, leading).astype(rng.choice((np.int32, np.int64)))
        inputs.insert(0, Input("indices", indices, data_place))
        call.expected = weight.decode().numpy()[indices]
        return call
    activation = rng.choice(KERNEL_ACTIVATIONS)
    attributes["activation"] = activation.encode()
    a = draws.standard_normal((*leading, K)).astype(np.float32)
    if rng.random() < 0.5:
        a = (a / 100).astype(np.float16)  # whose products float16 holds
    bias = draws.standard_normal(rng.choice((1, N))).astype(np.float32)
    inputs.insert(0, Input("A", a, data_place))
    inputs.append(Input("bias", bias, rng.choice(places)))
    expected, tolerance = (expected_swiglu, SWIGLU_TOLERANCE) if kind == "SwiGlu" else (expected_matmul, TOLERANCE)
    call.expected = expected(weight, a.astype(np.float32), bias, activation)
    call.tolerance = tolerance[activation]
    if a.dtype == np.float16:
        call.tolerance += HALF_TOLERANCE
        call.output_type = TensorProto.FLOAT16
    return call


def _attribute_of_another_size(call: Call, rng: random.Random) -> None:
    name = rng.choice([name for name, value in call.attributes.items() if isinstance(value, int)] or ["K"])
    near = call.attributes.get(name)
    sizes = (*SIZES, near - 1, near + 1, near + 16, 2 * near) if isinstance(near, int) else SIZES
    call.attributes[name] = min(max(rng.choice(sizes), -(2**63)), 2**63 - 1)


def _attribute_missing(call: Call, rng: random.Random) -> None:
    if call.attributes:
        del call.attributes[rng.choice(list(call.attributes))]


def _attribute_of_another_type(call: Call, rng: random.Random) -> None:
    if call.attributes:
        wrong = (1.5, [1, 2], [1.5], b"16", 16, ["a8"], np.zeros(3, np.int64))
        call.attributes[rng.choice(list(call.attributes))] = rng.choice(wrong)


def _attribute_of_another_text(call: Call, rng: random.Random) -> None:
    call.attributes[rng.choice(("layout", "activation"))] = rng.choice(TEXTS)


def _another_operator(call: Call, rng: random.Random) -> None:
    other_bits = re.sub(r"\d", rng.choice("234568"), call.operator, count=1)
    other_kind = re.sub("^(MatMul|SwiGlu|Gather)", rng.choice(("MatMul", "SwiGlu", "Gather")), call.operator)
    call.operator = rng.choice((rng.choice(list(OPERATORS)), other_bits, other_kind))


def _dimension_changed(call: Call, rng: random.Random) -> None:
    tensor = rng.choice(call.inputs)
    if not tensor.array.ndim:
        return
    shape = list(tensor.array.shape)
    axis = rng.randrange(len(shape))
    shape[axis] = rng.choice((0, 1, max(shape[axis] - 1, 0), shape[axis] + 1, 2 * shape[axis]))
    if math.prod(shape) <= LARGEST:
        tensor.array = np.resize(tensor.array, shape)


def _same_bytes_of_another_shape(call: Call, rng: random.Random) -> None:
    tensor = rng.choice(call.inputs)
    shape = list(tensor.array.shape)
    change = rng.randrange(5)
    if change == 0:
        shape = [-1] if tensor.array.size else [0]
    elif change == 1:
        shape.insert(rng.randint(0, len(shape)), 1)
    elif change == 2:
        rng.shuffle(shape)
    elif change == 3 and len(shape) > 1 and shape[1]:
        shape[:2] = [shape[0] * shape[1]]
    elif tensor.array.size == 1:
        shape = []
    tensor.array = tensor.array.reshape(shape)


def _scalar(call: Call, rng: random.Random) -> None:
    tensor = rng.choice(call.inputs)
    tensor.array = np.zeros((), tensor.array.dtype)


def _empty(call: Call, rng: random.Random) -> None:
    tensor = rng.choice(call.inputs)
    tensor.array = np.zeros(rng.choice(EMPTY_SHAPES), tensor.array.dtype)


def _many_dimensions(call: Call, rng: random.Random) -> None:
    tensor = rng.choice(call.inputs)
    tensor.array = tensor.array.reshape([1] * rng.randint(1, 32 - tensor.array.ndim) + list(tensor.array.shape))


def _another_type(call: Call, rng: random.Random) -> None:
    tensor = rng.choice(call.inputs)
    with np.errstate(all="ignore"):
        tensor.array = tensor.array.astype(rng.choice(DTYPES))


def _same_bytes_of_another_type(call: Call, rng: random.Random) -> None:
    tensor = rng.choice(call.inputs)
    if tensor.array.ndim:
        same_width = {1: ("uint8", "int8", "bool"), 2: ("float16", "int16"), 4: ("float32", "int32"), 8: ("int64",)}
        tensor.array = tensor.array.view(rng.choice(same_width[tensor.array.itemsize]))


def _bytes_missing(call: Call, rng: random.Random) -> None:
    tensor = rng.choice(call.inputs)
    if tensor.place == "constant" and tensor.array.size:
        tensor.missing_bytes = rng.randint(1, min(16, tensor.array.nbytes))


def _inputs_exchanged(call: Call, rng: random.Random) -> None:
    i, j = rng.randrange(len(call.inputs)), rng.randrange(len(call.inputs))
    call.inputs[i], call.inputs[j] = call.inputs[j], call.inputs[i]


def _input_dropped(call: Call, rng: random.Random) -> None:
    if len(call.inputs) > 1:
        del call.inputs[rng.randrange(len(call.inputs))]


def _input_added(call: Call, rng: random.Random) -> None:
    call.inputs.insert(rng.randint(0, len(call.inputs)), Input("extra", np.zeros(16, np.float32), "fed"))


def _input_without_name(call: Call, rng: random.Random) -> None:
    rng.choice(call.inputs).is_empty_name = True


def _another_row(call: Call, rng: random.Random) -> None:
    """One index out of range, where the data are indices."""
    data = call.data.array
    if data.dtype.kind == "i" and data.size:
        N = call.attributes.get("N")
        limits = np.iinfo(data.dtype)
        rows = [limits.min, limits.max, *([N, -N - 1, N + 15] if isinstance(N, int) else [])]
        call.data.array = data.copy()
        call.data.array.flat[rng.randrange(data.size)] = min(max(rng.choice(rows), limits.min), limits.max)
        call.expected = None


def _noise(call: Call, rng: random.Random) -> None:
    """Any bytes at all: NaN, infinity and numbers that overflow among them."""
    tensor = rng.choice(call.inputs)
    if tensor.array.dtype.kind in "fui" and tensor.array.ndim and tensor.array.size:
        data = np.frombuffer(rng.choice((b"\xff", b"\0", rng.randbytes(1))) * tensor.array.nbytes, tensor.array.dtype)
        if rng.random() < 0.7:
            data = np.frombuffer(rng.randbytes(tensor.array.nbytes), tensor.array.dtype)
        tensor.array = data.reshape(tensor.array.shape)
    call.expected = None


def _outputs_of_another_number(call: Call, rng: random.Random) -> None:
    call.outputs = rng.choice((["Y", "Y2"], ["", "Y"], [""], []))


def _output_of_another_type(call: Call, rng: random.Random) -> None:
    call.output_type = rng.choice((TensorProto.UINT8, TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.STRING, 0))


def _output_of_another_shape(call: Call, rng: random.Random) -> None:
    call.output_shape = rng.choice(([], [1], [1, 1], [2**31, 2**31], [0, 4]))


def _node_named_badly(call: Call, rng: random.Random) -> None:
    call.node_name = rng.choice(("", "a'b\n", "\u00e9", "n" * 5000, "%s%n"))


BREAKS: tuple[Callable[[Call, random.Random], None], ...] = (
    _attribute_of_another_size,
    _attribute_of_another_size,
    _attribute_missing,
    _attribute_of_another_type,
    _attribute_of_another_text,
    _another_operator,
    _dimension_changed,
    _dimension_changed,
    _same_bytes_of_another_shape,
    _scalar,
    _empty,
    _many_dimensions,
    _another_type,
    _same_bytes_of_another_type,
    _bytes_missing,
    _inputs_exchanged,
    _input_dropped,
    _input_added,
    _input_without_name,
    _another_row,
    _another_row,
    _another_row,
    _noise,
    _outputs_of_another_number,
    _output_of_another_type,
    _output_of_another_shape,
    _node_named_badly,
)
FED_BREAKS = (
    _dimension_changed,
    _same_bytes_of_another_shape,
    _scalar,
    _empty,
    _many_dimensions,
    _another_type,
    _another_row,
    _noise,
)


def flaw(call: Call) -> str | None:
    """Why the call must be refused, by the operators' definition (docs/formats.md); None where it must run."""
    operator = OPERATORS.get(call.operator)
    if operator is None:
        return "operator"
    weight = operator.weight
    if operator.name == "Hadamard":
        return _flaw_of_rotation(call)
    if "epsilon" in operator.attributes:
        return _flaw_of_norm(call)
    if weight is None:
        return _flaw_of_attention(call)
    is_linear = operator.kind != "Gather"
    for name in ("K", "N", "group_size"):
        if not isinstance(call.attributes.get(name), int):
            return name
    K, N, group_size = (call.attributes[name] for name in ("K", "N", "group_size"))
    assert isinstance(K, int) and isinstance(N, int) and isinstance(group_size, int)
    if K < 1 or N < 1 or K * N > 2**40 or (operator.kind == "SwiGlu" and N % 32):
        return "size"
    if group_size not in (*GROUP_SIZES, K):
        return "group_size"
    texts = {name: value for name, value in call.attributes.items() if isinstance(value, bytes)}
    if texts.get("layout") != LAYOUT.encode():
        return "layout"
    if is_linear and texts.get("activation") not in [activation.encode() for activation in KERNEL_ACTIVATIONS]:
        return "activation"

    tiles, groups, entries = -(-N // 16), -(-K // group_size), 2**weight.bits
    wanted: list[tuple[str, list[tuple[int, ...]]]] = [
        ("uint8", [(tiles, -(-K // 32), weight.bits, 64)]),
        ("float16" if weight.scale_type is FLOAT16 else "uint8", [(tiles, groups, 16)]),
    ]
    if weight.scale_type is TWO_LEVEL:
        wanted.append(("float16", [(tiles, 1, 16)]))
    if weight.code_type == "UInt":
        wanted.append(("uint8", [(tiles, groups, 16)]))
    if weight.code_type == "Lut":
        wanted.append(("int8", [(1, 1, entries), (tiles, 16, entries)]))
    if is_linear:
        wanted.append(("float32", [(1,), (N,)]))
    if len(call.inputs) != 1 + len(wanted) or any(tensor.is_empty_name for tensor in call.inputs):
        return "number of inputs"
    if any(tensor.missing_bytes for tensor in call.inputs):
        return "bytes missing"
    for tensor, (dtype, shapes) in zip(call.inputs[1:], wanted, strict=True):
        if tensor.array.dtype != dtype or tensor.array.shape not in shapes:
            return tensor.name
    data = call.data.array
    if is_linear and (data.dtype not in (np.float32, np.float16) or data.shape[-1:] != (K,)):
        return "A"
    if not is_linear and (data.dtype not in (np.int32, np.int64) or not ((data >= -N) & (data < N)).all()):
        return "indices"
    if call.is_fed_other_types:
        return "fed types"
    if call.outputs != ["Y"]:
        return "outputs"
    is_half = is_linear and data.dtype == np.float16
    if call.output_type not in (0, TensorProto.FLOAT16 if is_half else TensorProto.FLOAT):
        return "output type"
    return None


def _flaw_of_rotation(call: Call) -> str | None:
    size, x = call.attributes.get("block_size"), call.data.array
    if not isinstance(size, int) or size not in BLOCK_SIZES:
        return "block_size"
    if len(call.inputs) != 1 or call.data.is_empty_name:
        return "number of inputs"
    if call.data.missing_bytes:
        return "bytes missing"
    if x.dtype not in (np.float32, np.float16) or not x.ndim or x.shape[-1] % size:
        return "X"
    if call.is_fed_other_types:
        return "fed types"
    if call.outputs != ["Y"]:
        return "outputs"
    if call.output_type not in (0, TensorProto.FLOAT16 if x.dtype == np.float16 else TensorProto.FLOAT):
        return "output type"
    return None


def _flaw_of_norm(call: Call) -> str | None:
    operator, epsilon, x = OPERATORS[call.operator], call.attributes.get("epsilon"), call.data.array
    if not isinstance(epsilon, float) or not epsilon >= 0:
        return "epsilon"
    if len(call.inputs) != len(operator.inputs) or any(tensor.is_empty_name for tensor in call.inputs):
        return "number of inputs"
    if any(tensor.missing_bytes for tensor in call.inputs):
        return "bytes missing"
    if x.dtype not in (np.float32, np.float16) or not x.ndim or x.shape[-1] < 1:
        return "X"
    for name, tensor in zip(operator.inputs[1:], call.inputs[1:], strict=True):
        wanted = (x.dtype, x.shape) if name == "skip" else (np.float32, x.shape[-1:])
        if (tensor.array.dtype, tensor.array.shape) != wanted:
            return name
    if call.is_fed_other_types:
        return "fed types"
    if call.outputs != list(operator.outputs):
        return "outputs"
    if call.output_type not in (0, TensorProto.FLOAT16 if x.dtype == np.float16 else TensorProto.FLOAT):
        return "output type"
    return None


def _flaw_of_attention(call: Call) -> str | None:
    operator = OPERATORS[call.operator]
    heads, groups = (call.attributes.get(name) for name in ("num_heads", "kv_num_heads"))
    if not isinstance(heads, int) or not isinstance(groups, int) or heads < 1 or groups < 1 or heads % groups:
        return "heads"
    if not all(isinstance(call.attributes.get(name), float) for name in ("scale", "softcap")):
        return "scale"
    if len(call.inputs) != len(operator.inputs) or any(tensor.is_empty_name for tensor in call.inputs):
        return "number of inputs"
    if any(tensor.missing_bytes for tensor in call.inputs):
        return "bytes missing"
    arrays = {name: tensor.array for name, tensor in zip(operator.inputs, call.inputs, strict=True)}
    query, mask = arrays["query"], arrays["mask"]
    bits = bits_of(operator.name)
    kept = np.dtype(np.uint8) if bits else query.dtype
    types = {"past_key": kept, "past_value": kept}
    if query.dtype not in (np.float32, np.float16):
        return "types"
    if any(array.dtype != types.get(name, query.dtype) for name, array in arrays.items()):
        return "types"
    ranks = {"mask": 4, "past_key": 4, "past_value": 4}
    if any(array.ndim != ranks.get(name, 3) for name, array in arrays.items()):
        return "ranks"
    batch, length, columns = query.shape
    if columns < 1 or columns % heads:
        return "query"
    size = columns // heads
    tokens = arrays["key"].shape[1]
    if len(arrays) > 4 and tokens != length:
        return "key"
    if any(arrays[name].shape != (batch, tokens, groups * size) for name in ("key", "value")):
        return "key or value"
    if "cos" in arrays:
        cos = arrays["cos"].shape
        if arrays["sin"].shape != cos or cos[0] not in (1, batch) or cos[1] != length or cos[2] % 2 or cos[2] > size:
            return "cos or sin"
    if "past_key" in arrays:
        tokens, past = mask.shape[3], arrays["past_key"].shape
        row = {0: size, 8: size + 2, 4: (size + 1) // 2 + 2}[bits]
        if past != (batch, groups, past[2], row) or arrays["past_value"].shape != past:
            return "past"
        if not length <= tokens <= length + past[2]:
            return "tokens"
    if any(have not in (1, want) for have, want in zip(mask.shape, (batch, heads, length, tokens), strict=True)):
        return "mask"
    if call.is_fed_other_types:
        return "fed types"
    if call.outputs != list(operator.outputs):
        return "outputs"
    if call.output_type not in (0, TensorProto.FLOAT16 if query.dtype == np.float16 else TensorProto.FLOAT):
        return "output type"
    return None


PRESENTS = ("present_key", "present_value")


@cache
def _body(operator: str) -> onnx.FunctionProto:
    return ir.to_proto(function_for(operator, OPSET))


def build(calls: list[Call], rng: random.Random) -> Run:
    """The first call's model, and what is fed to it: the other calls differ in nothing else."""
    call = calls[0]
    external = bytearray()
    initializers, graph_inputs, node_inputs = [], [], []
    for position, tensor in enumerate(call.inputs):
        name = f"{tensor.name}{position}"
        node_inputs.append("" if tensor.is_empty_name else name)
        array = tensor.array
        element = helper.np_dtype_to_tensor_dtype(array.dtype)
        if tensor.place == "fed":
            graph_inputs.append(helper.make_tensor_value_info(name, element, None))
            continue
        proto = TensorProto(name=name, data_type=element, dims=array.shape)
        if tensor.place == "external" and array.nbytes:
            external += b"\xaa" * rng.randrange(1, 4)  # at any address
            proto.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "data"), ("offset", len(external)), ("length", array.nbytes)):
                proto.external_data.add(key=key, value=str(value))
            external += array.tobytes()
        else:
            proto.raw_data = array.tobytes()[: array.nbytes - tensor.missing_bytes]
        initializers.append(proto)
    node = helper.make_node(call.operator, node_inputs, call.outputs, name=call.node_name, domain=DOMAIN)
    for name, value in call.attributes.items():
        if isinstance(value, np.ndarray):
            value = onnx.numpy_helper.from_array(value)
        node.attribute.append(helper.make_attribute(name, value))
    keeps_codes = bits_of(call.operator) > 0
    outputs = [
        helper.make_tensor_value_info(
            name, TensorProto.UINT8 if keeps_codes and name in PRESENTS else call.output_type, call.output_shape
        )
        if call.output_type
        else onnx.ValueInfoProto(name=name)
        for name in call.outputs
        if name
    ]
    graph = helper.make_graph([node], "one", graph_inputs, outputs, initializers)
    functions = [_body(call.operator)] if call.with_body and call.operator in OPERATORS else []
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)
    return Run(
        model.SerializeToString(),
        bytes(external) or None,
        [
            {f"{tensor.name}{i}": tensor.array for i, tensor in enumerate(each.inputs) if tensor.place == "fed"}
            for each in calls
        ],
        threads=rng.choice((1, 1, 2)),
        optimize=rng.random() < 0.7,
        guarded=rng.random() < 0.5,
    )
