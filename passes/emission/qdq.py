"""The dialect `qdq`: a site's own node reads its weight from a `DequantizeLinear`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch

from qxcompiler.dialects import QDQ
from qxcompiler.dialects.base import scale_type
from qxcompiler.formats import Scheme
from qxcompiler.graph import Site, Weight
from qxcompiler.packing import PackedWeight, element_type, elements, in_bytes, unpack_grid
from qxcompiler.passes.emission.writer import SiteNodes, Writer
from qxcompiler.passes.rewriting import Additions

__all__ = ["QdqWriter"]


class QdqWriter(Writer):
    """`DequantizeLinear` before a site's node, which stays as it is.

    - Codes lie as the node reads its weight, so that nothing comes between, or else as [N, K].
    - Groups are blocks along K; one scale a row is an axis, which opset 13 knows.
    - A look-up of 8-bit codes comes before their `DequantizeLinear`, which then decodes the rows that are read. Smaller
      types cannot be looked up: the whole table is decoded.
    """

    def __init__(
        self,
        model: ir.Model,
        schemes: Mapping[Site, Scheme],
        weights: Mapping[Weight, PackedWeight],
        additions: Additions,
    ) -> None:
        super().__init__(model, schemes, weights, additions)
        layouts: dict[Weight, set[_Layout]] = {}
        for site in schemes:
            layouts.setdefault(site.weight, set()).add(_layout(site))
        self._stored = {
            weight: _store(weights[weight], weight, _common(used, weights[weight]), additions)
            for weight, used in layouts.items()
        }

    def replace(self, site: Site, scheme: Scheme) -> None:
        """Let the site's node read the decoded weight, or decode the rows that it looks up."""
        nodes = _QdqNodes(site, scheme, self.additions, self._stored[site.weight])
        if QDQ.looks_up_codes(site, scheme):
            nodes.decode_rows()
        else:
            if site.in_subgraph:  # a body has no initializers of its own, without which onnxruntime (1.31) fails
                nodes.place = self.model.graph[0]
            nodes.decode_weight()


class _Layout(NamedTuple):
    """The shape of a weight, and which of its axes are N and K."""

    shape: tuple[int, ...]
    out_axis: int
    in_axis: int


def _layout(site: Site) -> _Layout:
    """How a node reads its weight: a `Conv` in its first two axes, others in the last two."""
    first = 0 if site.node.op_type == "Conv" else len(site.operand_shape) - 2
    out_axis, in_axis = (first + 1, first) if site.operand_transposed else (first, first + 1)
    return _Layout(site.operand_shape, out_axis, in_axis)


def _common(used: set[_Layout], packed: PackedWeight) -> _Layout:
    """How a weight is stored: as all sites read it, else as [N, K].

    Also as [N, K] where two directions of a recurrent layer have a scale a row, and where 2-bit codes [K, N] have rows
    that end within a byte: onnxruntime (1.31) reads those wrongly when it puts `MatMulNBits` in the place of
    `DequantizeLinear` and `MatMul`.
    """
    N, K = packed.out_features, packed.in_features
    (layout, *others) = used
    within_bytes = packed.format.bits == 2 and layout.in_axis < layout.out_axis and N % 4
    several = layout.shape[layout.out_axis] < N and QDQ.is_per_row(packed.format, K)  # axes; scales are along one
    return _Layout((N, K), 0, 1) if others or within_bytes or several else layout


@dataclass(frozen=True)
class _Stored:
    """A weight's tensors: its codes as `layout` says, and what decodes them beside each block, or [N]."""

    layout: _Layout
    values: list[ir.Value]  # codes, scales and, where there are some, zero points
    block_size: int | None  # None for a scale a row
    dtype: ir.DataType


def _store(packed: PackedWeight, weight: Weight, layout: _Layout, additions: Additions) -> _Stored:
    fmt, K = packed.format, packed.in_features
    dtype, scales = element_type(fmt), scale_type(fmt, weight)
    assert dtype is not None
    shape, out_axis, in_axis = layout
    per_row = QDQ.is_per_row(fmt, K)
    beside = (weight.out_features,) if per_row else (*shape[:in_axis], fmt.groups(K), *shape[in_axis + 1 :])

    def laid(matrix: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
        array: np.ndarray = (matrix.T if in_axis < out_axis else matrix).contiguous().numpy().reshape(shape)
        return array

    def codes() -> ir.TensorProtocol:
        return _tensor(laid(elements(packed), shape), dtype)

    def decoding() -> ir.TensorProtocol:
        return ir.tensor(laid(unpack_grid(packed).scales, beside).astype(scales.numpy()))

    def zero_points() -> ir.TensorProtocol:
        return _tensor(laid(unpack_grid(packed).stored["zero_points"], beside), dtype)

    def lazy(name: str, make: Callable[[], ir.TensorProtocol], dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
        return additions.constant(ir.LazyTensor(make, dtype=dtype, shape=ir.Shape(shape), name=f"{weight.name}.{name}"))

    values = [lazy("codes", codes, dtype, shape), lazy("scales", decoding, scales, beside)]
    if fmt.has_zero_points:
        values.append(lazy("zero_points", zero_points, dtype, beside))
    return _Stored(layout, values, None if per_row else fmt.group_length(K), scales)


def _tensor(codes: np.ndarray, dtype: ir.DataType) -> ir.TensorProtocol:
    """Elements, given bit by bit, as a tensor of their type."""
    if dtype.bitwidth == 8:
        return ir.Tensor(codes.view(dtype.numpy()), dtype)
    return ir.PackedTensor(in_bytes(codes.reshape(-1), dtype.bitwidth), dtype, shape=codes.shape)


class _QdqNodes(SiteNodes):
    """`DequantizeLinear` beside one site's node."""

    def __init__(self, site: Site, scheme: Scheme, additions: Additions, stored: _Stored) -> None:
        super().__init__(site, scheme, additions)
        self._stored = stored

    def decode_weight(self) -> None:
        site, stored, layout = self.site, self._stored, self._stored.layout
        if stored.block_size is None:
            W = self.node("DequantizeLinear", stored.values, axis=layout.out_axis)
        else:
            W = self.node("DequantizeLinear", stored.values, axis=layout.in_axis, block_size=stored.block_size)
        if _layout(site) != layout:
            W = self.transpose(W, [1, 0] if site.operand_transposed else None)
            if len(site.operand_shape) > 2:
                shape = torch.tensor(site.operand_shape)
                W = self.node("Reshape", [W, self.additions.shared(("shape", site.operand_shape), "qxc.shape", shape)])
        site.node.replace_input_with(site.operand_index, self.cast(W, stored.dtype, site.operand_dtype))
        if site.kind == "recurrent":  # whose node has two
            self.describe(site.node)
        else:
            self.describe_weight(site.node)

    def decode_rows(self) -> None:
        site, stored = self.site, self._stored
        rows = [self.node("Gather", [value, site.input]) for value in stored.values]
        looked_up = self.describe_weight(rows[0].producer())
        if stored.block_size is None:  # a number a row, which is one block
            last = self.additions.shared("last axis", "qxc.last_axis", torch.tensor([-1]))
            rows[1:] = [self.node("Unsqueeze", [value, last]) for value in rows[1:]]
        decoded = self.node("DequantizeLinear", rows, axis=-1, block_size=stored.block_size or site.in_features)
        self.finish(self.cast(decoded, stored.dtype, site.operand_dtype), named=looked_up)
