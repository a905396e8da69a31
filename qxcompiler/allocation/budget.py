"""Bits where they count: the format of every linear layer, under a budget of bits a weight."""

from __future__ import annotations

__all__ = ["budget"]

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from qxcompiler.allocation.plan import Plan, sites_by_weight
from qxcompiler.allocation.question import Question
from qxcompiler.allocation.uniform import uniform
from qxcompiler.errors import UsageError
from qxcompiler.formats import CodebookFormat, Format, IntegerFormat, Scheme
from qxcompiler.graph import Weight, by_operator, not_finite
from qxcompiler.packing import packed_bytes
from qxcompiler.quantizers import quantize_weights
from qxcompiler.targets import Target

_log = logging.getLogger(__name__)
_EXACT = 1e-4  # the share of the best sum of errors that the solver may miss

# The error that each format would make, of each weight.
Errors = dict[Weight, dict[Format, float]]


def budget(question: Question) -> Plan:
    """Spend a number of bits a weight on the linear layers where the model's predictions gain most.

    Every layer gets the format that `uniform` would give it, in one of the numbers of bits that the target holds. The
    error of a layer in a format is the divergence that it alone would cause (`token_weights` of `derivatives/`, with
    the codes that the quantizer chooses), in nats a position. Their sum is the smallest that the budget allows, found
    by a mixed-integer program (MXQ, Zhang et al. 2024, with these errors). Layers that one operator computes agree.

    What `uniform` leaves in float, the head, embeddings, and layers that the predictions do not depend on are no part
    of the budget.

    Raises:
        UsageError: there is nothing to choose, or the budget is too small.
    """
    options, plan, sites = question.options, uniform(question), question.sites
    assert options.bits_per_weight is not None
    infinite = not_finite(sites)
    formats = {
        weight: _of_other_bits(scheme.format, question.target)
        for weight, users in sites_by_weight(sites).items()
        if weight not in infinite
        and all(site.role != "head" and site in question.calibration.token_weights for site in users)
        and (scheme := plan[users[0].name])
    }
    asked = f"--bpw {options.bits_per_weight:g}"
    if all(len(choices) < 2 for choices in formats.values()):
        held = ", ".join(sorted({fmt.name for choices in formats.values() for fmt in choices}))
        problem = f"has nothing to choose: the target {question.target.name} holds {held or 'no layer'}"
        raise UsageError(asked, problem, "choose another format with --weights")
    errors = _errors(question, formats)
    alike = ([site.weight for site in group if site.weight in errors] for group in by_operator(sites))
    groups = list(dict.fromkeys(tuple(dict.fromkeys(weights)) for weights in alike if weights))
    chosen = _cheapest(groups, errors, options.bits_per_weight)
    if chosen is None:
        least = _bits(groups, [min(errors[group[0]], key=partial(_bytes, group)) for group in groups])
        raise UsageError(asked, f"is too little: the smallest formats take {least:.3f}", "give more bits")
    expected = sum(errors[weight][fmt] for group, fmt in zip(groups, chosen, strict=True) for weight in group)
    _log.info("%.3f bits a weight, expected divergence %.4f", _bits(groups, chosen), expected)
    format_of = {weight: fmt for group, fmt in zip(groups, chosen, strict=True) for weight in group}
    for site in sites:
        if (fmt := format_of.get(site.weight)) and (scheme := plan[site.name]):
            plan[site.name] = Scheme(fmt, scheme.activation)
            plan.errors[site.name] = {each.name: error for each, error in errors[site.weight].items()}
    return plan


def _of_other_bits(fmt: Format, target: Target) -> list[Format]:
    """The format in every number of bits that the target holds, itself among them."""
    if isinstance(fmt, IntegerFormat) and target.integer:
        return [replace(fmt, bits=bits) for bits in sorted(target.integer.bits)]
    if isinstance(fmt, CodebookFormat) and target.codebook and not fmt.normal_float:
        return [replace(fmt, bits=bits) for bits in sorted(target.codebook.bits)]
    return [fmt]


def _errors(question: Question, formats: Mapping[Weight, Sequence[Format]]) -> Errors:
    """Half the sum over tokens of token weight times |x(W - Ŵ)ᵀ|², with what each format makes of W."""
    quantizer, device = question.options.quantizer, question.calibration.device
    errors: Errors = {}
    for stop in question.calibration.walk(question.model, "allocate"):
        todo = [weight for weight in stop.weights if weight in formats and weight not in errors]
        for weight, statistics in stop.statistics(todo).items() if todo else ():
            W, errors[weight] = stop.weights[weight].to(device), {}
            for fmt in formats[weight]:
                dW = W - quantize_weights([weight], fmt, quantizer, statistics, device)[0].decode().to(device)
                errors[weight][fmt] = 0.5 * statistics.tokens * statistics.unit**2 * statistics.squared_norm(dW)
    return errors


def _cheapest(groups: Sequence[Sequence[Weight]], errors: Errors, bits_per_weight: float) -> list[Format] | None:
    """A format for each group, with the smallest sum of errors that the bits allow; None if they allow none."""
    choices = [(index, fmt) for index, group in enumerate(groups) for fmt in errors[group[0]]]
    costs = np.array([sum(errors[weight][fmt] for weight in groups[index]) for index, fmt in choices])
    bits = np.array([8.0 * _bytes(groups[index], fmt) for index, fmt in choices])
    places = np.array([index for index, _ in choices])
    one_each = coo_array((np.ones(len(choices)), (places, np.arange(len(choices)))))
    limit = bits_per_weight * _weights(groups)
    solution = milp(
        costs / max(costs.max(), np.finfo(float).tiny),
        integrality=np.ones(len(choices)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(bits / limit, ub=1)],
        options={"mip_rel_gap": _EXACT},
    )
    if solution.x is None:
        return None
    taken = [choice for choice, share in zip(choices, solution.x, strict=True) if share > 0.5]
    return [fmt for _, fmt in taken]


def _bits(groups: Sequence[Sequence[Weight]], formats: Sequence[Format]) -> float:
    """Bits a weight."""
    return 8 * sum(map(_bytes, groups, formats)) / _weights(groups)


def _bytes(group: Sequence[Weight], fmt: Format) -> int:
    return sum(packed_bytes(fmt, weight.out_features, weight.in_features) for weight in group)


def _weights(groups: Sequence[Sequence[Weight]]) -> int:
    return sum(weight.out_features * weight.in_features for group in groups for weight in group)
