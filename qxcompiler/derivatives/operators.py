"""What the operators of ONNX compute, in torch, so that it can be differentiated.

A function takes a node's inputs (None where an optional one is left out) and its attributes by name, and gives one
tensor or, for several outputs, a tuple. Floats of 16 bits are computed in float32, for their derivatives would be too
small for them. Sizes, axes and other integers that say how to compute may lie on the CPU beside a model on another
device.
"""

from __future__ import annotations

__all__ = ["OPERATORS", "Operator", "rms_norm"]

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from qxcompiler.derivatives.attention import attention, rotary_embedding

Operator: TypeAlias = Callable[..., Tensor | tuple[Tensor, ...]]

_TYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float32,
    ir.DataType.BFLOAT16: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
}


def _together(*tensors: Tensor) -> list[Tensor]:
    """Tensors on the device of the first that is not on the CPU."""
    device = next((each.device for each in tensors if each.device.type != "cpu"), torch.device("cpu"))
    return [each.to(device) for each in tensors]


def _ints(tensor: Tensor) -> list[int]:
    return [int(each) for each in tensor.reshape(-1).tolist()]


def _elementwise(function: Callable[..., Tensor]) -> Operator:
    return lambda *inputs: function(*_together(*inputs))


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda *inputs: reduce(function, _together(*inputs))


def _mean(*inputs: Tensor) -> Tensor:
    return reduce(torch.add, _together(*inputs)) / len(inputs)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _modulo(a: Tensor, b: Tensor, fmod: int = 0) -> Tensor:
    a, b = _together(a, b)
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def _power(base: Tensor, exponent: Tensor) -> Tensor:
    """The type is the base's. Small whole exponents as products: their derivative at 0 is a number."""
    if exponent.numel() == 1 and not exponent.requires_grad:
        number = float(exponent)
        power = base.pow(int(number) if number == int(number) else number).to(base.dtype)
        return power.expand(np.broadcast_shapes(base.shape, exponent.shape))
    base, exponent = _together(base, exponent)
    return base.pow(exponent).to(base.dtype)


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    for bound, function in ((low, torch.maximum), (high, torch.minimum)):
        if bound is not None:
            x = function(*_together(x, bound))
    return x


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    return functional.gelu(x, approximate=approximate)


def _hard_sigmoid(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def _cast(x: Tensor, to: int, saturate: int = 1) -> Tensor:
    return x.to(_TYPES[ir.DataType(to)])


def _where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    condition, a, b = _together(condition, a, b)
    return torch.where(condition, a, b)


# products


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    a, b = _together(a, b)
    return a @ b


def _gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    product = alpha * ((a.T if transA else a) @ (b.T if transB else b))
    return product if c is None else product + beta * c


def _einsum(*inputs: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *_together(*inputs))


def _pads_of(auto_pad: str, pads: Sequence[int] | None, spatial: Sequence[tuple[int, int, int, int]]) -> list[int]:
    """Zeros before and after every spatial axis, all `before` first; spatial: size, kernel, stride, dilation."""
    if auto_pad in ("NOTSET", "VALID"):
        return list(pads or [0] * 2 * len(spatial))
    before, after = [], []
    for size, kernel, stride, dilation in spatial:
        total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before.append(small if auto_pad == "SAME_UPPER" else large)
        after.append(large if auto_pad == "SAME_UPPER" else small)
    return before + after


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """Pads of the last axes, all `before` first."""
    axes = len(pads) // 2
    pairs = [each for axis in reversed(range(axes)) for each in (pads[axis], pads[axes + axis])]
    return functional.pad(x, pairs, value=value) if any(pads) else x


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    kernel = weight.shape[2:]
    strides, dilations = strides or [1] * len(kernel), dilations or [1] * len(kernel)
    spatial = list(zip(x.shape[2:], kernel, strides, dilations, strict=True))
    x = _padded(x, _pads_of(auto_pad, pads, spatial))
    convolve: Callable[..., Tensor] = (functional.conv1d, functional.conv2d, functional.conv3d)[len(kernel) - 1]
    return convolve(x, weight, bias, stride=list(strides), dilation=list(dilations), groups=group)


# norms and reductions


def _axes(x: Tensor, axes: Tensor | None, noop_with_empty_axes: int) -> list[int] | None:
    """The axes to reduce; None for nothing."""
    if axes is not None and axes.numel():
        return _ints(axes)
    return None if noop_with_empty_axes else list(range(x.ndim))


def _reduction(
    function: Callable[[Tensor, list[int], bool], Tensor], one: Callable[[Tensor], Tensor] = lambda x: x
) -> Operator:
    """`one` is what becomes of a number that nothing is added to."""

    def compute(x: Tensor, axes: Tensor | None = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        over = _axes(x, axes, noop_with_empty_axes)
        return one(x) if over is None else function(x, over, bool(keepdims))

    return compute


def _product(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keepdims)
    return x


def _softmax(x: Tensor, axis: int = -1) -> Tensor:
    return x.softmax(axis)


def _log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    return x.log_softmax(axis)


def _layer_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    shape = x.shape[axis % x.ndim :]
    y = functional.layer_norm(x, shape, eps=epsilon) * scale
    return y if bias is None else y + bias


def rms_norm(x: Tensor, scale: Tensor, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    """`RMSNormalization` of opset 23 (ONNX operator specification): x over its root mean square, times a scale."""
    over = list(range(axis % x.ndim, x.ndim))
    return x * (x.square().mean(over, keepdim=True) + epsilon).rsqrt() * scale


def _instance_norm(x: Tensor, scale: Tensor, bias: Tensor, epsilon: float = 1e-5) -> Tensor:
    return functional.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def _group_norm(
    x: Tensor, scale: Tensor, bias: Tensor, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    if len(scale) != x.shape[1]:  # before opset 21 there is one number a group
        scale, bias = (each.repeat_interleave(x.shape[1] // num_groups) for each in (scale, bias))
    return functional.group_norm(x, num_groups, scale, bias, epsilon)


def _batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor:
    return functional.batch_norm(x, mean, variance, scale, bias, training=False, eps=epsilon)


# shapes, and what is moved


def _shape(x: Tensor, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def _reshape(x: Tensor, shape: Tensor, allowzero: int = 0) -> Tensor:
    sizes = _ints(shape)
    if not allowzero:
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(x: Tensor, axis: int = 1) -> Tensor:
    axis = axis % x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(_ints(axes)))


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    positions = _ints(axes)
    rank = x.ndim + len(positions)
    for axis in sorted(axis % rank for axis in positions):
        x = x.unsqueeze(axis)
    return x


def _transpose(x: Tensor, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(list(perm) if perm is not None else list(reversed(range(x.ndim))))


def _concat(*inputs: Tensor, axis: int) -> Tensor:
    return torch.cat(_together(*inputs), axis)


def _split(x: Tensor, split: Tensor | None = None, axis: int = 0, num_outputs: int | None = None) -> tuple[Tensor, ...]:
    if split is not None:
        return torch.split(x, _ints(split), axis)
    assert num_outputs is not None
    return torch.split(x, -(-x.shape[axis] // num_outputs), axis)


def _slice(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    first, last = _ints(starts), _ints(ends)
    over = range(len(first)) if axes is None else _ints(axes)
    by = [1] * len(first) if steps is None else _ints(steps)
    for start, end, axis, step in zip(first, last, over, by, strict=True):
        if step > 0:
            places: list[slice] = [slice(None)] * x.ndim
            places[axis] = slice(start, end, step)
            x = x[tuple(places)]
        else:
            size = x.shape[axis]
            wanted = range(size)[slice(start, None if end < -size else end, step)]
            x = x.index_select(axis, torch.tensor(wanted, dtype=torch.int64, device=x.device))
    return x


def _within(indices: Tensor, size: int) -> Tensor:
    return torch.where(indices < 0, indices + size, indices).long()


def _gather(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    x, indices = _together(x, indices)
    axis = axis % x.ndim
    taken = x.index_select(axis, _within(indices, x.shape[axis]).reshape(-1))
    return taken.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def _gather_elements(x: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    x, indices = _together(x, indices)
    places = [torch.arange(size, device=x.device) for size in indices.shape]
    grid = list(torch.meshgrid(*places, indexing="ij"))
    grid[axis] = _within(indices, x.shape[axis])
    return x[tuple(grid)]


def _gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0) -> Tensor:
    x, indices = _together(x, indices)
    lead, depth = x.shape[:batch_dims], indices.shape[-1]
    x, indices = x.reshape(-1, *x.shape[batch_dims:]), indices.reshape(-1, *indices.shape[batch_dims:])
    batch = torch.arange(len(x), device=x.device).reshape(-1, *[1] * (indices.ndim - 2)).expand(indices.shape[:-1])
    places = [_within(indices[..., i], x.shape[1 + i]) for i in range(depth)]
    taken = x[(batch, *places)]
    return taken.reshape(*lead, *taken.shape[1:])


def _scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, reduction: str = "none") -> Tensor:
    x, indices, updates = _together(x, indices, updates)
    places = tuple(_within(indices[..., i], x.shape[i]) for i in range(indices.shape[-1]))
    if reduction not in ("none", "add"):
        raise NotImplementedError(f"reduction {reduction}")
    return x.index_put(places, updates, accumulate=reduction == "add")


def _expand(x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(np.broadcast_shapes(x.shape, tuple(_ints(shape))))


def _tile(x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(_ints(repeats))


def _pad(
    x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None, mode: str = "constant"
) -> Tensor:
    given = _ints(pads)
    over = [axis % x.ndim for axis in (range(x.ndim) if axes is None else _ints(axes))]
    every = [0] * 2 * x.ndim
    for place, axis in enumerate(over):
        every[axis], every[x.ndim + axis] = given[place], given[len(over) + place]
    if mode == "constant":
        return _padded(x, every, 0.0 if value is None else float(value))
    for axis in range(x.ndim):
        before, after, size = every[axis], every[x.ndim + axis], x.shape[axis]
        if not before and not after:
            continue
        places = torch.arange(-before, size + after, device=x.device)
        if mode == "edge":
            places = places.clamp(0, size - 1)
        elif mode == "wrap":
            places = places % size
        else:  # reflect: there and back without the ends twice
            period = max(2 * (size - 1), 1)
            places = places % period
            places = torch.where(places < size, places, period - places)
        x = x.index_select(axis, places)
    return x


def _constant_of_shape(shape: Tensor, value: Any = None) -> Tensor:
    number = torch.zeros(1) if value is None else torch.from_numpy(value.numpy().copy())
    return number.reshape(()).expand(_ints(shape)).clone()


def _range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _trilu(x: Tensor, k: Tensor | None = None, upper: int = 1) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return x.triu(diagonal) if upper else x.tril(diagonal)


def _cumsum(x: Tensor, axis: Tensor, exclusive: int = 0, reverse: int = 0) -> Tensor:
    over = int(axis)
    if reverse:
        x = x.flip(over)
    y = x.cumsum(over, dtype=x.dtype)
    if exclusive:
        y = y - x
    return y.flip(over) if reverse else y


def _arg(function: Callable[..., Tensor]) -> Operator:
    def compute(x: Tensor, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
        if select_last_index:
            raise NotImplementedError("select_last_index")
        return function(x, axis, keepdim=bool(keepdims))

    return compute


OPERATORS: dict[str, Operator] = {
    # of every number by itself
    "Abs": torch.abs,
    "And": _elementwise(torch.logical_and),
    "Ceil": torch.ceil,
    "Cast": _cast,
    "Clip": _clip,
    "Cos": torch.cos,
    "Dropout": lambda x, ratio=None, training_mode=None, seed=0: x,
    "Elu": lambda x, alpha=1.0: functional.elu(x, alpha),
    "Equal": _elementwise(torch.eq),
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Gelu": _gelu,
    "Greater": _elementwise(torch.gt),
    "GreaterOrEqual": _elementwise(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": functional.hardswish,
    "Identity": lambda x: x,
    "IsInf": torch.isinf,
    "IsNaN": torch.isnan,
    "LeakyRelu": lambda x, alpha=0.01: functional.leaky_relu(x, alpha),
    "Less": _elementwise(torch.lt),
    "LessOrEqual": _elementwise(torch.le),
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": _elementwise(torch.logical_or),
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Swish": lambda x, alpha=1.0: x * torch.sigmoid(alpha * x),
    "Tanh": torch.tanh,
    "Where": _where,
    # of two numbers, or more
    "Add": _elementwise(torch.add),
    "Div": _elementwise(_divide),
    "Max": _variadic(torch.maximum),
    "Mean": _mean,
    "Min": _variadic(torch.minimum),
    "Mod": _modulo,
    "Mul": _elementwise(torch.mul),
    "Pow": _power,
    "Sub": _elementwise(torch.sub),
    "Sum": _variadic(torch.add),
    # products
    "Conv": _conv,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
    # norms and reductions
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "Attention": attention,
    "BatchNormalization": _batch_norm,
    "CumSum": _cumsum,
    "GlobalAveragePool": lambda x: x.mean(list(range(2, x.ndim)), keepdim=True),
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _log_softmax,
    "RMSNormalization": rms_norm,
    "RotaryEmbedding": rotary_embedding,
    "SimplifiedLayerNormalization": rms_norm,  # onnxruntime's name, in the standard's domain
    "ReduceL1": _reduction(lambda x, axes, keep: x.abs().sum(axes, keep), torch.abs),
    "ReduceL2": _reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep), torch.abs),
    "ReduceLogSumExp": _reduction(lambda x, axes, keep: x.logsumexp(axes, keep)),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keep)),
    "ReduceMean": _reduction(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keep)),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keep, dtype=x.dtype)),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(axes, keep), torch.square),
    "Softmax": _softmax,
    # shapes, and what is moved
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": lambda x: torch.tensor(x.numel()),
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
"""By name, in the default domain from opset 18 on."""
