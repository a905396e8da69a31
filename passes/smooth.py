"""Move the range of activations into the weights that read them, where activations are rounded to 8 bits."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from qxcompiler.calibration.segment_runner import UnrunnableError
from qxcompiler.calibration.statistics import InputRows
from qxcompiler.calibration.walk import Calibration, Stop
from qxcompiler.formats import Scheme, rotate
from qxcompiler.formats.scales import LARGEST_HALF
from qxcompiler.graph import Exchange, Site, by_value, find_exchange, has_own_weights, shape_of_channels
from qxcompiler.passes.rewriting import Additions

__all__ = ["Smooth", "factors", "rounded"]

_log = logging.getLogger(__name__)

# The migration strengths and the thresholds that are tried; threshold 0 changes every channel, as the paper does.
_STRENGTHS = (0.5, 0.75, 1.0)
_THRESHOLDS = (0.0, 1.25, 2.0)
# Samples, spaced evenly, whose activations are looked at.
_SAMPLES = 16
# Rows of each weight, spaced evenly, whose outputs are compared.
_OUTPUTS = 64
# A Mul takes a few percent of its layers' time, as 0.15 bits more a weight would: these take a tenth off the error.
_WORTH_A_MUL = 0.9
# Beyond these factors, constants in float16 lose digits.
_SMALLEST, _LARGEST = 2.0**-10, 2.0**10


class Smooth(ir.passes.InPlacePass):
    """Divide activations by a factor a channel, and multiply the weights that read them by it: `(X / s)(W s)ᵀ = XWᵀ`.

    SmoothQuant (Xiao et al. 2023, equations 3 and 4), where X is rounded to 8 bits (a8). The factors even out the
    channels of X, which share a scale a token.

    - Layers that read one value have the same factors. Their strength is the one that leaves the smallest error in
      the layers' outputs, measured on some rows of X, with X and weights rounded as planned, or none.
    - The division goes into constants and weights that X is made of (`graph/exchange.py`). Where there are none, or
      something else reads X, it becomes a `Mul`, if the error falls by a tenth at least.
    - A weight that anything else reads stays as it is, and so do those that read the same value.
    - Nothing is done without samples, where no layer has 8-bit activations, and after a part of the model that
      onnxruntime cannot run by itself.
    """

    def __init__(self, calibration: Calibration) -> None:
        super().__init__()
        self._calibration = calibration

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the model in place."""
        calibration, samples = self._calibration, self._calibration.samples
        found: list[_Smoothing] = []
        if samples and any(scheme.activation == "a8" for scheme in calibration.schemes.values()):
            try:
                spaced = replace(calibration, samples=samples[:: -(-len(samples) // _SAMPLES)])
                for stop in spaced.walk(model, "smooth"):
                    found += self._smoothings(stop)
            except UnrunnableError as error:
                _log.info("nothing more is smoothed: %s", error)
        additions = Additions(model)
        for smoothing in found:
            smoothing.apply(additions)
        return ir.passes.PassResult(model, modified=bool(found))

    def _smoothings(self, stop: Stop) -> Iterator[_Smoothing]:
        """What is worth changing of the layers of a segment."""
        schemes = self._calibration.schemes
        groups = [
            sites
            for sites in by_value(site for site in stop.segment.sites if site in schemes).values()
            if any(schemes[site].activation == "a8" for site in sites) and has_own_weights(sites)
        ]
        seen = stop.rows([sites[0].weight for sites in groups]) if groups else {}
        for sites in groups:
            X = seen[sites[0].weight]
            if not bool(X.largest.any()):  # no sample reaches them, or with zeros alone
                continue
            exchange = find_exchange(sites, list(schemes))
            weights = {site.weight: schemes[site] for site in sites}
            layers = [_Layer(stop.weights[weight].to(X.rows), scheme) for weight, scheme in weights.items()]
            best = _best(X, layers, exchange)
            smoothing = _Smoothing(sites, best.s.cpu(), exchange)
            if best.gain < (1 if exchange else _WORTH_A_MUL) and smoothing.fits(X.largest.cpu()):
                names, where = ", ".join(site.name for site in sites), "folded" if exchange else "by a Mul"
                _log.info("%s: strength %s, threshold %s, %.2f of the error, %s", names, *best.how, best.gain, where)
                yield smoothing


@dataclass(frozen=True)
class _Smoothing:
    """Factors s, float32 [K], for the layers that read one value."""

    sites: Sequence[Site]
    s: torch.Tensor
    exchange: Exchange | None

    def fits(self, largest: torch.Tensor) -> bool:
        """Whether float16 holds what is that now and becomes larger.

        Args:
            largest: the largest magnitude of every channel of the value, float32 [K].
        """
        exchange, site = self.exchange or Exchange(), self.sites[0]
        changed: list[tuple[float, ir.Value | None]] = []
        changed += [(float(self.s.max()), each.weight.value) for each in self.sites]
        changed += [(1 / float(self.s.min()), each.weight.value) for each in exchange.rows]
        changed += [(1 / float(self.s.min()), node.inputs[index]) for node, index in exchange.constants]
        magnitudes = [factor * _largest_float16(value) for factor, value in changed]
        if site.operand_dtype == ir.DataType.FLOAT16:
            magnitudes.append(float((largest / self.s).max()))
        return max(magnitudes) < LARGEST_HALF

    def apply(self, additions: Additions) -> None:
        """Multiply the weights by s, and what they read by its inverse."""
        if self.exchange is None:
            self._insert(additions)
        else:
            self._fold(self.exchange, additions)
        for weight in dict.fromkeys(site.weight for site in self.sites):
            weight.change(partial(torch.mul, self.s))

    def _fold(self, exchange: Exchange, additions: Additions) -> None:
        inverse = torch.cat([1 / self.s, torch.ones(1)]).numpy()  # the last is that of channel -1, which is none
        for (node, index), channels in exchange.constants.items():
            old = node.inputs[index]
            assert old is not None and old.const_value is not None
            divided = old.const_value.numpy() * inverse[channels]
            node.replace_input_with(index, additions.constant(_tensor(f"{old.name}.smooth", divided, old.dtype)))
            if not old.uses() and not old.is_graph_output():
                additions.remove(old)
        for site, channels in exchange.rows.items():
            site.weight.change(partial(torch.mul, torch.from_numpy(inverse[channels])[:, None]))

    def _insert(self, additions: Additions) -> None:
        site = self.sites[0]
        X, shape = site.input, shape_of_channels(site, site.in_features)
        inverse = (1 / self.s).numpy().reshape(shape)
        factor = additions.constant(_tensor(f"{X.name}.smooth", inverse, site.operand_dtype))
        node = additions.node("Mul", [X, factor], name=f"{X.name}.smooth.Mul")
        node.outputs[0].type, node.outputs[0].shape = X.type, X.shape
        assert site.node.graph is not None
        site.node.graph.insert_before(site.node, node)
        for each in self.sites:
            each.node.replace_input_with(1 - each.operand_index, node.outputs[0])


@dataclass(frozen=True)
class _Layer:
    """A weight, float32 [N, K], and how it is planned to compute."""

    W: torch.Tensor
    scheme: Scheme


class _Choice(NamedTuple):
    """How factors are chosen, by (alpha, threshold), the factors, and the error with them over the one without."""

    how: tuple[float, float]
    s: torch.Tensor
    gain: float


def _best(X: InputRows, layers: Sequence[_Layer], exchange: Exchange | None) -> _Choice:
    """The factors that leave the smallest error."""
    classes = torch.from_numpy((exchange or Exchange()).classes(len(X.largest))).to(X.rows.device)
    largest_X = _of_classes(X.largest, classes)
    largest_W = _of_classes(torch.cat([layer.W for layer in layers]).abs().amax(0), classes)
    is_free = classes[:-1] != classes[-1]
    found = {
        (alpha, threshold): factors(largest_X, largest_W, alpha, threshold).where(is_free, 1)
        for alpha, threshold in product(_STRENGTHS, _THRESHOLDS)
    }
    rows = X.rows / X.largest.max()  # whose squares are numbers
    before = _error(rows, layers, torch.ones_like(X.largest))
    errors = {how: _error(rows, layers, s) for how, s in found.items()}
    best = min(errors, key=errors.__getitem__)
    return _Choice(best, found[best], errors[best] / before if before else 1.0)


def factors(X: torch.Tensor, W: torch.Tensor, alpha: float, threshold: float = 0) -> torch.Tensor:
    """`s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)` (equation 4), over their median: only ratios matter.

    With a threshold t it is `max(1, s_j / t)`, so that ordinary channels stay as they are: with alpha = 1 that is
    Outlier Suppression+ (Wei et al. 2023).

    Args:
        X: the largest magnitude of every channel of the activations, float32 [K].
        W: the same of every column of the weights that read them.
        alpha: the migration strength, between 0 and 1.
        threshold: t, or 0.

    Returns:
        float32 [K], between 2^-10 and 2^10, which float16 holds; 1 where a channel is zero.
    """
    log_s = alpha * X.log() - (1 - alpha) * W.log()
    known = (X > 0) & (W > 0)
    s = (log_s - log_s[known].median()).exp() if bool(known.any()) else torch.ones_like(X)
    s = (s / threshold).clamp(min=1) if threshold else s
    return s.clamp(_SMALLEST, _LARGEST).where(known, 1)


def rounded(X: torch.Tensor) -> torch.Tensor:
    """What a8 keeps of an activation [tokens, K]: 8-bit integers times `max|x| / 127` a token."""
    scale = X.abs().amax(1, keepdim=True) / 127
    return (X / scale.where(scale > 0, 1)).round().clamp(-127, 127) * scale


def _error(X: torch.Tensor, layers: Sequence[_Layer], s: torch.Tensor) -> float:
    """`|(X / s)(W s)ᵀ - XWᵀ| / |XWᵀ|`, with activations and weights rounded as planned: the mean over layers."""
    X_s = X / s
    inputs = {rotated: rotate(X_s) if rotated else X_s for rotated in {each.scheme.format.rotated for each in layers}}
    total = 0.0
    for layer in layers:
        W = layer.W[:: -(-len(layer.W) // _OUTPUTS)]
        W_s = rotate(W * s) if layer.scheme.format.rotated else W * s
        X_s = inputs[layer.scheme.format.rotated]
        try:
            grid = layer.scheme.format.fit(W_s, X_s.square().mean(0))
        except OverflowError:  # the weight does not fit the format
            return math.inf
        X_q = rounded(X_s) if layer.scheme.activation == "a8" else X_s
        W_q = grid.decode(grid.encode(W_s, slice(None)), slice(None))
        Y = X @ W.T
        total += float((X_q @ W_q.T - Y).square().sum() / Y.square().sum())
    return math.sqrt(total / len(layers)) if math.isfinite(total) else math.inf


def _largest_float16(value: ir.Value | None) -> float:
    """The largest magnitude of a constant in float16; 0 for other types, which hold far larger ones."""
    constant = None if value is None else value.const_value
    if constant is None or constant.dtype != ir.DataType.FLOAT16:
        return 0.0
    return float(np.abs(constant.numpy()).max(initial=0))


def _of_classes(largest: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The largest number of its class for every channel."""
    of_class = torch.zeros_like(classes, dtype=largest.dtype).scatter_reduce(0, classes[:-1], largest, "amax")
    return of_class[classes[:-1]]


def _tensor(name: str, numbers: npt.NDArray[Any], dtype: ir.DataType | None) -> ir.TensorProtocol:
    assert dtype is not None
    return ir.Tensor(numbers.astype(dtype.numpy()), dtype=dtype, name=name)
