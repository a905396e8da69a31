"""The dialect `contrib`: onnxruntime's `MatMulNBits` and `GatherBlockQuantized`."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch

from qxcompiler.dialects.base import scale_type
from qxcompiler.formats import Scheme
from qxcompiler.graph import Site, Weight
from qxcompiler.packing import PackedWeight, nbits, nbits_shapes
from qxcompiler.passes.emission.writer import SiteNodes, Writer
from qxcompiler.passes.rewriting import Additions

__all__ = ["ContribWriter"]

_DOMAIN = "com.microsoft"
_FLOAT32, _INT8 = 1, 4  # levels of accuracy: what activations are multiplied as, at least


class ContribWriter(Writer):
    """Operators that onnxruntime has in kernels of its own.

    - They compute along the last axis, in the type of the scales: other types are cast, other axes transposed.
    - An embedding reads the blocks that a product reads, as rows; what fills up the last block is cut off.
    """

    def __init__(
        self,
        model: ir.Model,
        schemes: Mapping[Site, Scheme],
        weights: Mapping[Weight, PackedWeight],
        additions: Additions,
    ) -> None:
        super().__init__(model, schemes, weights, additions)
        self._tensors = {weight: _store(packed, weight, additions) for weight, packed in weights.items()}

    def replace(self, site: Site, scheme: Scheme) -> None:
        """Put one of the operators in the place of the site's node."""
        nodes = _ContribNodes(site, scheme, self.additions, self._tensors[site.weight])
        if site.kind == "embedding":
            nodes.replace_gather()
        else:
            nodes.replace_linear(nodes.dtype, takes_bias=False)

    def finish(self) -> None:
        """Import the domain."""
        self.model.opset_imports.setdefault(_DOMAIN, 1)


def _store(packed: PackedWeight, weight: Weight, additions: Additions) -> list[ir.Value]:
    """Blocks, scales and, where there are some, zero points."""
    dtypes = {"scales": scale_type(packed.format, weight)}
    values = []
    for name, shape in nbits_shapes(packed.format, packed.out_features, packed.in_features).items():
        dtype = dtypes.get(name, ir.DataType.UINT8)

        def make(name: str = name, dtype: ir.DataType = dtype) -> ir.TensorProtocol:
            return ir.tensor(nbits(packed, name).astype(dtype.numpy(), copy=False))

        tensor = ir.LazyTensor(make, dtype=dtype, shape=ir.Shape(shape), name=f"{weight.name}.{name}")
        values.append(additions.constant(tensor))
    return values


class _ContribNodes(SiteNodes):
    """One of the operators in the place of one site's node."""

    def __init__(self, site: Site, scheme: Scheme, additions: Additions, tensors: list[ir.Value]) -> None:
        super().__init__(site, scheme, additions)
        self._tensors = tensors
        self.dtype = scale_type(scheme.format, site.weight)

    def product(self, X: ir.Value, bias: ir.Value | None) -> ir.Value:
        fmt = self.scheme.format
        Y = self.node(
            "MatMulNBits",
            [X, *self._tensors],
            _DOMAIN,
            K=self.site.in_features,
            N=self.site.out_features,
            bits=fmt.bits,
            block_size=fmt.group_size,
            accuracy_level=_INT8 if self.scheme.activation == "a8" else _FLOAT32,
        )
        self.describe_weight(Y.producer())
        return Y

    def replace_gather(self) -> None:
        fmt, K = self.scheme.format, self.site.in_features
        blocks, *others = self._tensors
        table = self.node("Reshape", [blocks, self._numbers(self.site.out_features, -1)])
        rows = self.node(
            "GatherBlockQuantized",
            [table, self.site.input, *others],
            _DOMAIN,
            bits=fmt.bits,
            block_size=fmt.group_size,
            gather_axis=0,
            quantize_axis=1,
        )
        looked_up = self.describe_weight(rows.producer())
        if K % fmt.group_length(K):
            rows = self.node("Slice", [rows, self._numbers(0), self._numbers(K), self._numbers(-1)])
        self.finish(self.cast(rows, self.dtype, self.site.operand_dtype), named=looked_up)

    def _numbers(self, *numbers: int) -> ir.Value:
        return self.additions.shared(numbers, "qxc.numbers", torch.tensor(numbers))
