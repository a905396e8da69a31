"""Find the sites: every use of a constant weight matrix in a graph."""

from __future__ import annotations

__all__ = ["Site", "Weight", "locate_sites", "not_finite"]

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir
import torch

from qxcompiler.errors import ModelError
from qxcompiler.graph.nodes import is_standard

FLOAT_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


Kind: TypeAlias = Literal["linear", "convolution", "recurrent", "embedding"]


@dataclass(eq=False)
class Weight:
    """A constant matrix `[N, K]`, one row an output feature, behind one or more sites.

    Attributes:
        name: the initializer's name, with a suffix where one initializer is used in two orientations.
        value: the initializer that holds the numbers.
        transposed: whether the initializer stores `[K, N]`.
        casts: the types it is cast to on the way to the node, in order.
        out_features: N.
        in_features: K.
        dtype: the type that its first site reads it as.
    """

    name: str
    value: ir.Value
    transposed: bool
    casts: tuple[ir.DataType, ...]
    out_features: int
    in_features: int
    dtype: ir.DataType

    @property
    def nbytes(self) -> int:
        """Size of the initializer in bytes."""
        return self._tensor.nbytes

    def matrix(self) -> torch.Tensor:
        """Read the weight from disk: float32 `[N, K]`, contiguous, the caller's own copy."""
        array = self._tensor.numpy()
        for dtype in self.casts:
            array = array.astype(dtype.numpy())
        return self._as_matrix(array)

    def change(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Let the weight be what a function makes of it, whenever it is read: nothing is read now.

        All sites of the initializer see the change. What was changed is changed again by a second call.

        Args:
            function: from float32 `[N, K]` to the same shape; called at every read, so it must always give the same.
        """
        original = self._tensor

        def changed() -> ir.TensorProtocol:
            matrix = function(self._as_matrix(original.numpy())).cpu().numpy()
            array = matrix.T if self.transposed else matrix
            return ir.tensor(np.ascontiguousarray(array.astype(original.dtype.numpy()).reshape(original.shape.numpy())))

        self.value.const_value = ir.LazyTensor(
            changed, dtype=original.dtype, shape=ir.Shape(original.shape.numpy()), name=original.name
        )

    def _as_matrix(self, array: np.ndarray) -> torch.Tensor:
        rows, columns = self.out_features, self.in_features
        shape = (columns, rows) if self.transposed else (rows, columns)
        matrix = torch.from_numpy(array.astype(np.float32).reshape(shape))
        return matrix.T.contiguous() if self.transposed else matrix

    @property
    def _tensor(self) -> ir.TensorProtocol:
        if self.value.const_value is None:
            raise ValueError(f"weight {self.name!r} holds no data")
        return self.value.const_value


@dataclass(eq=False)
class Site:
    """One use of a weight: a linear layer, a convolution, one half of a recurrent layer, or an embedding.

    A linear site computes `Y = alpha * X Wᵀ + beta * bias` over the features of X. A `Conv` of one point, stride 1, no
    padding and one group is linear; a row of any other one's weight is a filter, `[C_out, C_in / group * kh * kw]`. An
    `LSTM`, `GRU` or `RNN` has two sites, of the weights that its input and its state are multiplied with, those of all
    gates and directions as rows.

    Attributes:
        name: the node's name, made up and unique where the node has none; `.W` or `.R` follows for a recurrent layer.
        node: the `MatMul`, `Gemm`, `Conv`, `LSTM`, `GRU`, `RNN` or `Gather`.
        kind: what the node does with the weight.
        weight: the matrix `[N, K]`.
        operand_index: which of the node's inputs is the weight.
        operand_shape: the shape of `operand`, dimensions of 1 included.
        operand_dtype: that value's type.
        operand_transposed: whether that value is `[K, N]` (after dropping dimensions of 1).
        activation_axis: the axis of X, and of Y, that holds the features: -1; -2 where the weight is the left
            operand of a `MatMul`; 1 for `Conv`.
        alpha: factor on the product (`Gemm`).
        beta: factor on the bias (`Gemm`).
        role: see `qxcompiler.graph.roles`.
        block: index of the transformer block, `None` outside the blocks.
        in_subgraph: whether the node is in the body of an `If`, `Loop` or `Scan`.
    """

    name: str
    node: ir.Node
    kind: Kind
    weight: Weight
    operand_index: int
    operand_shape: tuple[int, ...]
    operand_dtype: ir.DataType
    operand_transposed: bool
    activation_axis: int = -1
    alpha: float = 1.0
    beta: float = 1.0
    role: str = "other"
    block: int | None = None
    in_subgraph: bool = False

    # What the node reads is asked of the node, so that a pass may put others before it.

    @property
    def input(self) -> ir.Value:
        """The activation X, or the indices of an embedding; a recurrent layer's sites both have its input."""
        return self._read(0 if self.operand_index else 1)

    @property
    def operand(self) -> ir.Value:
        """The value that the node itself reads as its weight, after any `Transpose`, `Identity` or `Cast`."""
        return self._read(self.operand_index)

    @property
    def bias(self) -> ir.Value | None:
        """The value added to Y inside the node (`Gemm`, `Conv`), seldom not constant."""
        return self.node.inputs[2] if len(self.node.inputs) > 2 and self.kind != "recurrent" else None

    def _read(self, index: int) -> ir.Value:
        value = self.node.inputs[index]
        if value is None:
            raise ValueError(f"site {self.name!r} has lost an input")
        return value

    @property
    def multiplies_activations(self) -> bool:
        """Whether its scheme says of activations how precise they are: not where rows are looked up, nor of a state."""
        return self.kind in ("linear", "convolution")

    @property
    def in_features(self) -> int:
        """K."""
        return self.weight.in_features

    @property
    def out_features(self) -> int:
        """N."""
        return self.weight.out_features

    def operand_array(self, matrix: torch.Tensor) -> np.ndarray:
        """Lay out a float32 matrix `[N, K]` as the node reads its weight: with `operand`'s type and shape."""
        matrix = matrix.detach().cpu()
        array = (matrix.T if self.operand_transposed else matrix).contiguous().numpy()
        return array.astype(self.operand_dtype.numpy(), copy=False).reshape(self.operand_shape)


def locate_sites(model: ir.Model, *, every_kind: bool = False) -> list[Site]:
    """List the sites of a normalized model in topological order, those in bodies after the body's node.

    Sites that read the same initializer in the same orientation share one `Weight`: a tied embedding and head
    do. Their roles are still to be found.

    Args:
        model: the model.
        every_kind: whether convolutions and recurrent layers are sites, too.
    """
    finder = _Finder(every_kind)
    for node in model.graph.all_nodes():
        finder.visit(node, in_subgraph=node.graph is not model.graph)
    return finder.sites


def not_finite(sites: Iterable[Site]) -> set[Weight]:
    """The weights that hold infinities on purpose: tables that only embeddings read, such as an attention's biases.

    Every weight is read once.

    Raises:
        ModelError: a weight holds NaN, or one that is multiplied holds infinity.
    """
    multiplied: dict[Weight, bool] = {}
    for site in sites:
        multiplied[site.weight] = multiplied.get(site.weight, False) or site.kind != "embedding"
    found = set()
    for weight, is_multiplied in multiplied.items():
        matrix = weight.matrix()
        if bool(matrix.isfinite().all()):
            continue
        if is_multiplied or bool(matrix.isnan().any()):
            remedy = "repair the model it was exported from"
            raise ModelError(f"weight '{weight.name}'", "holds NaN or infinite values", remedy)
        found.add(weight)
    return found


@dataclass
class _Constant:
    """A node's constant operand, traced back to its initializer."""

    initializer: ir.Value
    axes: list[int]  # the initializer's axis behind each axis of the operand
    shape: tuple[int, ...]
    dtype: ir.DataType
    casts: tuple[ir.DataType, ...]


@dataclass
class _Finder:
    every_kind: bool
    sites: list[Site] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    weights: dict[tuple[int, bool, tuple[ir.DataType, ...]], Weight] = field(default_factory=dict)

    def visit(self, node: ir.Node, *, in_subgraph: bool) -> None:
        if is_standard(node, _RECOGNIZERS):
            for layout in _RECOGNIZERS[node.op_type](node):
                self._add(node, layout, in_subgraph=in_subgraph)

    def _add(self, node: ir.Node, layout: _Layout, *, in_subgraph: bool) -> None:
        constant = layout.constant
        rows, columns = constant.shape[layout.out_axis], constant.shape[layout.in_axis]
        others = [d for a, d in enumerate(constant.shape) if a not in (layout.out_axis, layout.in_axis)]
        kind = layout.kind
        if kind == "linear" and node.op_type == "Conv" and (any(d != 1 for d in others) or columns < 2):
            kind = "convolution"
        if kind in ("convolution", "recurrent"):
            if not self.every_kind or 0 in constant.shape or constant.axes != sorted(constant.axes):
                return
            rows = prod(constant.shape[: layout.in_axis])
            columns = prod(constant.shape[layout.in_axis :])
        # One input feature makes an outer product of two vectors, such as positions times rotary frequencies.
        elif rows == 0 or columns < 2 or any(d != 1 for d in others):
            return
        weight = self._weight(constant, layout, rows, columns)
        self.sites.append(
            Site(
                name=_unique(_name(node) + layout.part, self.names),
                node=node,
                kind=kind,
                weight=weight,
                operand_index=layout.operand_index,
                operand_shape=constant.shape,
                operand_dtype=constant.dtype,
                operand_transposed=layout.in_axis < layout.out_axis,
                activation_axis=layout.activation_axis,
                alpha=layout.alpha,
                beta=layout.beta,
                in_subgraph=in_subgraph,
            )
        )

    def _weight(self, constant: _Constant, layout: _Layout, rows: int, columns: int) -> Weight:
        transposed = constant.axes[layout.in_axis] < constant.axes[layout.out_axis]
        key = (id(constant.initializer), transposed, constant.casts)
        if key not in self.weights:
            name = _unique(constant.initializer.name or "weight", {w.name for w in self.weights.values()})
            self.weights[key] = Weight(
                name, constant.initializer, transposed, constant.casts, rows, columns, constant.dtype
            )
        return self.weights[key]


@dataclass
class _Layout:
    """How a node reads its weight: which axes of the operand are N and K, and everything else it does."""

    constant: _Constant
    operand_index: int
    out_axis: int
    in_axis: int
    kind: Kind = "linear"
    activation_axis: int = -1
    alpha: float = 1.0
    beta: float = 1.0
    part: str = ""  # of a node with several


def _matmul(node: ir.Node) -> Iterator[_Layout]:
    left, right, *_ = (*node.inputs, None, None)
    from_left, from_right = _trace(left), _trace(right)
    if left is None or right is None or (from_left and from_right):
        return
    x = left if from_right else right
    constant = from_right or from_left
    if constant is None:
        return
    rank = len(constant.shape)
    x_rank = None if x.shape is None else len(x.shape)
    # Leading dimensions of 1 are dropped only where they do not add dimensions to the output.
    if rank < 2 or (rank > 2 and (x_rank is None or x_rank < rank)):
        return
    if from_right:
        yield _Layout(constant, 1, out_axis=rank - 1, in_axis=rank - 2)
        return
    # What a weight at the left multiplies must be transposed, which takes its rank.
    if x_rank is None or x_rank == 1:
        return
    yield _Layout(constant, 0, out_axis=rank - 2, in_axis=rank - 1, activation_axis=-2)


def _gemm(node: ir.Node) -> Iterator[_Layout]:
    x, operand, *_ = (*node.inputs, None, None)
    constant = _trace(operand)
    if x is None or constant is None or node.attributes.get_int("transA", 0) != 0 or _trace(x):
        return
    if len(constant.shape) != 2:  # a damaged model; the runtime says what is wrong
        return
    out_axis, in_axis = (0, 1) if node.attributes.get_int("transB", 0) else (1, 0)
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    yield _Layout(constant, 1, out_axis, in_axis, alpha=alpha, beta=beta)


def _conv(node: ir.Node) -> Iterator[_Layout]:
    x, operand, *_ = (*node.inputs, None, None)
    constant = _trace(operand)
    plain = (
        node.attributes.get_int("group", 1) == 1
        and all(stride == 1 for stride in node.attributes.get_ints("strides", ()))
        and all(pad == 0 for pad in node.attributes.get_ints("pads", ()))
    )
    if x is None or constant is None or len(constant.shape) < 3:
        return
    yield _Layout(constant, 1, out_axis=0, in_axis=1, kind="linear" if plain else "convolution", activation_axis=1)


def _gather(node: ir.Node) -> Iterator[_Layout]:
    operand, indices, *_ = (*node.inputs, None, None)
    constant = _trace(operand)
    if indices is None or constant is None or node.attributes.get_int("axis", 0) != 0:
        return
    if len(constant.shape) != 2 or min(constant.shape) < 2 or _is_constant(indices) or _rotates(node):
        return
    if any(is_standard(use.node, ("DequantizeLinear",)) for use in node.outputs[0].uses()):
        return  # scales of codes that are looked up beside them
    yield _Layout(constant, 0, out_axis=0, in_axis=1, kind="embedding")


def _recurrent(node: ir.Node) -> Iterator[_Layout]:
    """Of the input and of the state: [directions, gates * state, features] each."""
    for index, part in ((1, ".W"), (2, ".R")):
        constant = _trace(node.inputs[index]) if len(node.inputs) > index else None
        if constant is not None and len(constant.shape) == 3:
            yield _Layout(constant, index, out_axis=1, in_axis=2, kind="recurrent", part=part)


_RECOGNIZERS = {"MatMul": _matmul, "Gemm": _gemm, "Conv": _conv, "Gather": _gather}
_RECOGNIZERS |= dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent)


def _name(node: ir.Node) -> str:
    return node.name or f"{node.op_type}_{node.outputs[0].name}"


def _is_constant(value: ir.Value) -> bool:
    return value.is_initializer() and value.const_value is not None and not value.is_graph_input()


def _trace(value: ir.Value | None) -> _Constant | None:
    """Follow `Transpose`, `Identity` and `Cast` from an operand to the float initializer behind it."""
    chain: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None:
        if not is_standard(node, ("Transpose", "Identity", "Cast")) or not node.inputs:
            return None
        chain.append(node)
        value = node.inputs[0]
    if value is None or not _is_constant(value):
        return None
    if value.const_value is None or value.const_value.dtype not in FLOAT_TYPES:
        return None
    tensor = value.const_value
    axes, dtype, casts = list(range(len(tensor.shape))), tensor.dtype, []
    for node in reversed(chain):
        if node.op_type == "Transpose":
            perm = node.attributes.get_ints("perm", tuple(reversed(range(len(axes)))))
            if sorted(perm) != list(range(len(axes))):
                return None
            axes = [axes[axis] for axis in perm]
        elif node.op_type == "Cast":
            target = ir.DataType(node.attributes.get_int("to", 0))
            if target not in FLOAT_TYPES:
                return None
            if target.bitwidth == 16 and target != dtype:  # the others keep every float32
                casts.append(target)
            dtype = target
    shape = tensor.shape.numpy()
    return _Constant(value, axes, tuple(shape[axis] for axis in axes), dtype, tuple(casts))


_MOVES = {"Unsqueeze", "Squeeze", "Reshape", "Cast", "Concat", "Transpose", "Identity"}


def _rotates(gather: ir.Node) -> bool:
    """Whether a lookup only feeds products with activations: a table of rotary angles, not an embedding."""
    consumers = [use.node for use in gather.outputs[0].uses()]
    multiplied = False
    while consumers:
        node = consumers.pop()
        if is_standard(node, _MOVES):
            consumers.extend(use.node for use in node.outputs[0].uses())
        elif is_standard(node, ("Mul",)) and not any(v is not None and _is_constant(v) for v in node.inputs):
            multiplied = True
        else:
            return False
    return multiplied


def _unique(name: str, used: set[str]) -> str:
    candidate, count = name, 1
    while candidate in used:
        count += 1
        candidate = f"{name}_{count}"
    used.add(candidate)
    return candidate
