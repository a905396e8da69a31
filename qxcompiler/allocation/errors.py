"""What the formats of a weight would lose: the terms that a budget can sum up."""

from __future__ import annotations

__all__ = ["TERMS", "Errors", "Term", "measure_errors"]

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from qxcompiler.allocation.question import Question
from qxcompiler.calibration.samples import Sample
from qxcompiler.calibration.statistics import InputStatistics
from qxcompiler.derivatives import LOGITS, TorchModel, compared_output
from qxcompiler.evaluation.language import ROWS, kl_divergence
from qxcompiler.formats import Format
from qxcompiler.graph import Site, Weight
from qxcompiler.quantizers import Need, find_quantizer, quantize_weights

Errors = dict[Weight, dict[Format, float]]
"""The error that each format would make, of each weight."""

_ROWS = 64  # of a weight, about, that a format is tried on, evenly spaced: all of them differ little in what they lose
_MEASURED = 4  # samples that the whole model is run on, once for each choice


@dataclass(frozen=True)
class Term:
    """One way to say what is lost where Ŵ takes the place of a weight W [N, K].

    Attributes:
        unit: what its numbers count.
        of: the error, from W - Ŵ and the statistics of W's inputs; None where the whole model is run.
        needs: samples, for the statistics; token weights, so that these count each token as it changes the predictions;
            attention weights, so that those of queries and keys count it as it changes the attention.
    """

    unit: str
    of: Callable[[Tensor, InputStatistics | None], float] | None
    needs: frozenset[Need] = frozenset({"statistics"})


def frobenius(dW: Tensor, statistics: InputStatistics | None) -> float:
    """|W - Ŵ|² (MXQ, Zhang et al. 2024), which needs no samples."""
    return float(dW.square().sum(dtype=torch.float64))


def output(dW: Tensor, statistics: InputStatistics | None) -> float:
    """|X(W - Ŵ)ᵀ|², summed over the tokens of all samples."""
    assert statistics is not None
    return statistics.tokens * statistics.unit**2 * statistics.squared_norm(dW)


def divergence(dW: Tensor, statistics: InputStatistics | None) -> float:
    """Half the sum over tokens of token weight times |x(W - Ŵ)ᵀ|²: half of dW's square in the Fisher matrix."""
    return 0.5 * output(dW, statistics)


def curvature(dW: Tensor, statistics: InputStatistics | None) -> float:
    """Half the mean of the Fisher matrix's diagonal times |W - Ŵ|² (HAWQ-V2, Dong et al. 2020, section 3.1).

    With g the derivative of the predictions by the layer's output, the diagonal sums to that of |x|² |g|² over tokens,
    and a token's weight is |g|² / N.
    """
    assert statistics is not None
    trace = statistics.tokens * statistics.unit**2 * float(statistics.importance.sum(dtype=torch.float64))
    return 0.5 * trace / dW.shape[1] * frobenius(dW, None)


_GUIDED: frozenset[Need] = frozenset({"statistics", "token weights"})
_ATTENTIVE: frozenset[Need] = _GUIDED | {"attention weights"}
_PREDICTIONS = "nats a position, where the output is `logits`"

TERMS: dict[str, Term] = {
    "frobenius": Term("squared weights", frobenius, needs=frozenset()),
    "output": Term("squared outputs of the layers, over all samples", output),
    "curvature": Term(_PREDICTIONS, curvature, needs=_GUIDED),
    "divergence": Term(_PREDICTIONS, divergence, needs=_GUIDED),
    "attention": Term(f"{_PREDICTIONS}; of queries and keys a row of attention", divergence, needs=_ATTENTIVE),
    "measured": Term(_PREDICTIONS, None),
}


def measure_errors(question: Question, formats: Mapping[tuple[Weight, ...], Sequence[Format]]) -> Errors:
    """What each format would lose, with the codes that the quantizer chooses; other weights stay as they are.

    Args:
        question: names the term and the quantizer, and has the samples.
        formats: what each group of weights may get; a group's weights get the same format, and are in one segment.

    Returns:
        The errors of all weights that a walk over the model meets. What `measured` finds for a group is split among its
        weights by their size.
    """
    options, device = question.options, question.calibration.device
    term = TERMS[options.error]
    whole = None if term.of else _WholeModel(question)

    def of_group(group: Sequence[Weight], fmt: Format, statistics: Mapping[Weight, InputStatistics | None]) -> float:
        assert whole
        replaced = {}
        for weight in group:
            (made,) = quantize_weights([weight], fmt, options.quantizer, statistics[weight], device)
            replaced[weight] = made.decode().to(device)
        return whole.divergence(replaced)

    def of_weight(weight: Weight, matrix: Tensor, statistics: InputStatistics | None, fmt: Format, by: str) -> float:
        assert term.of
        every = max(1, weight.out_features // _ROWS)
        (made,) = quantize_weights([weight], fmt, by, statistics, device, every)
        rows = matrix[::every].to(device)
        return term.of(rows - made.decode().to(device), statistics) * weight.out_features / len(rows)

    errors: Errors = {}
    for matrices, statistics in _matrices(question, term, list(formats)):
        for group in (group for group in formats if group[0] in matrices):
            if whole:
                lost = {fmt: of_group(group, fmt, statistics) for fmt in formats[group]}
                total = sum(matrices[weight].numel() for weight in group)
                for weight in group:
                    share = matrices[weight].numel() / total
                    errors[weight] = {fmt: share * error for fmt, error in lost.items()}
                continue
            for weight in group:
                of = partial(of_weight, weight, matrices[weight], statistics[weight])
                errors[weight] = _of_all(formats[group], weight.in_features, options.quantizer, of)
    return errors


def _of_all(
    formats: Sequence[Format], in_features: int, quantizer: str, of: Callable[[Format, str], float]
) -> dict[Format, float]:
    """What each format loses of one weight, by a quantizer that need not be run in all of them.

    One that moves errors onto other inputs leaves a share of what rounding to nearest loses, nearly the same in any
    number of bits of the same groups, if inputs are rotated alike (docs/results.md, "A budget of bits"): so it is run
    in middling bits, and the others are rounded.
    """
    if "statistics" not in find_quantizer(quantizer).needs:
        return {fmt: of(fmt, quantizer) for fmt in formats}
    lost = {fmt: of(fmt, "rtn") for fmt in formats}
    kinds: dict[tuple[bool, int], list[Format]] = {}
    for fmt in sorted(formats, key=lambda fmt: fmt.bits):
        kinds.setdefault((fmt.rotated, fmt.groups(in_features)), []).append(fmt)
    for alike in kinds.values():
        middle = alike[len(alike) // 2]
        if lost[middle]:
            share = of(middle, quantizer) / lost[middle]
            lost |= {fmt: share * lost[fmt] for fmt in alike}
    return lost


def _matrices(
    question: Question, term: Term, groups: Sequence[Sequence[Weight]]
) -> Iterator[tuple[Mapping[Weight, Tensor], Mapping[Weight, InputStatistics | None]]]:
    """The weights of all groups, each once and beside those of its group; statistics, if there are samples."""
    calibration = question.calibration
    if not calibration.samples:
        for group in calibration.track(groups, "allocate"):
            yield {weight: weight.matrix() for weight in group}, dict.fromkeys(group)
        return
    if "token weights" not in term.needs:
        calibration = replace(calibration, token_weights={})
    wanted, met = {weight for group in groups for weight in group}, set[Weight]()
    for stop in calibration.walk(question.model, "allocate"):
        todo = {weight: stop.weights[weight] for weight in stop.weights if weight in wanted and weight not in met}
        met |= todo.keys()
        if todo:
            yield todo, stop.statistics(todo)


class _WholeModel:
    """How far the model's predictions move where some weights are replaced, on the first few samples.

    Memory holds the original's output for these.
    """

    def __init__(self, question: Question) -> None:
        calibration = question.calibration
        self._model = TorchModel(question.model, question.sites, compared_output(question.model), calibration.device)
        self._samples = [(each, self._output(each, {})) for each in calibration.samples[:_MEASURED]]

    def divergence(self, replaced: Mapping[Weight, Tensor]) -> float:
        """The mean of D(original || changed) over positions; of an output that is no `logits`, |dy|² / |y|²."""
        compare = _mean_divergence if self._model.output == LOGITS else _relative_error
        return sum(compare(y, self._output(sample, replaced)) for sample, y in self._samples) / len(self._samples)

    def _output(self, sample: Sample, replaced: Mapping[Weight, Tensor]) -> Tensor:
        def matrix(site: Site) -> Tensor:
            return (replaced[site.weight] if site.weight in replaced else site.weight.matrix()).to(self._model.device)

        with torch.no_grad():
            return self._model(sample, matrix).float()


def _mean_divergence(p: Tensor, q: Tensor) -> float:
    p, q = p.reshape(-1, p.shape[-1]), q.reshape(-1, q.shape[-1])
    parts = zip(torch.split(p, ROWS), torch.split(q, ROWS), strict=True)
    # in float64: small divergences are differences of what is nearly equal
    return sum(float(kl_divergence(*(y.double().log_softmax(-1) for y in part)).sum()) for part in parts) / len(p)


def _relative_error(y: Tensor, changed: Tensor) -> float:
    return float((changed - y).square().sum() / y.square().sum())
