"""Weights as int8 and biases as int32, as layers with static activations multiply and add them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qxcompiler.calibration.ranges import StaticGrid
from qxcompiler.formats import Scheme
from qxcompiler.graph import Site, Weight
from qxcompiler.packing import PackedWeight, unpack
from qxcompiler.passes.emission.writer import SiteNodes
from qxcompiler.passes.rewriting import Additions

__all__ = ["IntegerLayers"]

_LARGEST_BIAS = 2.0**30  # codes; as much again is left for the sum of products


class IntegerLayers(ir.passes.InPlacePass):
    """Put a `DequantizeLinear` before the weight, and before the constant bias, of each site.

    - The weight is int8 with a scale an output feature, and no zero point.
    - The bias is int32 with the product of both scales, `alpha * x_scale * w_scale`, in which the products of codes
      count; so an integer unit adds it to their sum. A factor on it goes into its numbers. A feature whose weights are
      too small beside its bias for that gets a larger scale.

    Args:
        schemes: of linear sites and convolutions; the format is `int8`.
        weights: their weights.
        grids: of what they read; the bias of a site whose input has none, or whose `alpha` is no positive number, stays
            in float.
    """

    def __init__(
        self,
        schemes: Mapping[Site, Scheme],
        weights: Mapping[Weight, PackedWeight],
        grids: Mapping[ir.Value, StaticGrid],
    ) -> None:
        super().__init__()
        self._schemes = schemes
        self._weights = weights
        self._grids = grids

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the model in place."""
        additions = Additions(model)
        for site, scheme in self._schemes.items():
            _Layer(site, scheme, self._weights[site.weight], self._grids.get(site.input), additions).rewrite()
        ir.passes.common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(self._schemes))


class _Layer(SiteNodes):
    def __init__(
        self, site: Site, scheme: Scheme, packed: PackedWeight, grid: StaticGrid | None, additions: Additions
    ) -> None:
        super().__init__(site, scheme, additions)
        weight = unpack(packed)
        self._codes = weight.codes.numpy().astype(np.int16) - 128  # the code of zero
        self._scales = weight.grid.scales[:, 0].numpy()
        bias = _constant(site.bias)
        self._bias = None if grid is None or bias is None or site.alpha <= 0 else site.beta * bias.astype(np.float64)
        self._steps = np.float64(0 if grid is None else grid.scale) * site.alpha  # of the bias, over the weight's

    def rewrite(self) -> None:
        site, N = self.site, self.site.out_features
        if self._bias is not None and (bias := _row(self._bias, N)) is not None:
            self._make_room(bias)
            scales = (self._steps * self._scales).astype(np.float32)
            codes = np.round(bias / scales).clip(-_LARGEST_BIAS, _LARGEST_BIAS).astype(np.int32)
            site.node.replace_input_with(2, self._decoded("bias", codes, scales, 0))
            if "beta" in site.node.attributes:
                site.node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
        codes = self._codes.clip(-128, 127).astype(np.int8)
        codes = np.ascontiguousarray(codes.T if site.operand_transposed else codes).reshape(site.operand_shape)
        axis = 0 if site.kind == "convolution" or site.node.op_type == "Conv" else len(site.operand_shape) - 2
        axis += site.operand_transposed
        site.node.replace_input_with(site.operand_index, self._decoded("weight", codes, self._scales, axis))
        self.describe_weight(site.node)

    def _make_room(self, bias: npt.NDArray[np.float64]) -> None:
        """Larger scales for features whose bias would have too large a code."""
        smallest = (np.abs(bias) / (abs(self._steps) * _LARGEST_BIAS)).astype(np.float32)
        larger = smallest > self._scales
        scales = np.where(larger, smallest, self._scales)
        self._codes[larger] = np.round(self._codes[larger] * (self._scales / scales)[larger, None])
        self._scales = scales

    def _decoded(
        self, what: str, codes: npt.NDArray[np.integer], scales: npt.NDArray[np.float32], axis: int
    ) -> ir.Value:
        """The output of a `DequantizeLinear` before the site's node; equal tensors are stored once."""
        # onnxruntime makes no integer operator of one that leaves its zero points out
        arrays = {"codes": codes, "scales": scales, "zero_points": np.zeros(len(scales), codes.dtype)}
        inputs = []
        for part, array in arrays.items():
            key = ("integer layers", array.dtype.name, array.shape, hashlib.sha256(array.tobytes()).digest())
            inputs.append(self.additions.shared(key, f"{self.site.name}.{what}.{part}", ir.tensor(array)))
        decoded = self.node("DequantizeLinear", inputs, axis=axis)
        decoded.type, decoded.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(codes.shape)
        return decoded


def _constant(value: ir.Value | None) -> npt.NDArray[np.floating] | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _row(bias: npt.NDArray[np.float64], N: int) -> npt.NDArray[np.float64] | None:
    """One number a feature; None where rows have biases of their own."""
    if bias.size not in (1, N) or (bias.shape and bias.shape[-1] != bias.size):
        return None
    return np.broadcast_to(bias.reshape(-1), N)
