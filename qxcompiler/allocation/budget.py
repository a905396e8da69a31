"""Bits where they count: the format of every linear layer, under limits on what the model may take."""

from __future__ import annotations

__all__ = ["Considered", "budget", "consider", "limits", "spend"]

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from qxcompiler.allocation.account import Account, Choice, Choices, Limit
from qxcompiler.allocation.candidates import candidates, of_other_bits
from qxcompiler.allocation.errors import TERMS, Errors, measure_errors
from qxcompiler.allocation.plan import Plan, sites_by_weight
from qxcompiler.allocation.predicted_run import PredictedRun, Resource
from qxcompiler.allocation.program import Group, InfeasibleError, solve
from qxcompiler.allocation.question import Question
from qxcompiler.allocation.size import size_of_rest, size_of_weight, write_size
from qxcompiler.allocation.uniform import uniform
from qxcompiler.dialects import Dialect
from qxcompiler.errors import ModelError, UsageError
from qxcompiler.formats import Format, Scheme
from qxcompiler.graph import Weight, by_operator, not_finite
from qxcompiler.options import Options

_log = logging.getLogger(__name__)


def _costs(dialect: Dialect) -> dict[str, Callable[[Format, Weight], float]]:
    """What a weight takes in a format, of each resource that can be limited; `seconds` and `joules` besides."""
    return {"bytes": dialect.weight_bytes, "file bytes": partial(size_of_weight, dialect)}


@dataclass(frozen=True)
class Considered:
    """What there is to choose from, whatever the limits.

    Attributes:
        groups: weights that get one format.
        choices: what each group could get.
        formats: the same as formats.
        errors: what each format would lose, weight by weight.
        rest: bytes of the compiled model's files besides these weights, at most.
        run_rest: the `seconds` and `joules` that a run takes besides these weights, where they have a limit.
        tokens: what a run gives; 0 where neither has.
    """

    groups: list[tuple[Weight, ...]]
    choices: list[list[Choice]]
    formats: list[list[Format]]
    errors: Errors
    rest: int
    run_rest: dict[Resource, float]
    tokens: int

    @property
    def weights(self) -> int:
        """How many numbers the weights hold."""
        return sum(map(_numbers, self.groups))


def budget(question: Question) -> Plan:
    """Spend bytes on the linear layers where the model needs them most.

    Every layer gets one of several formats: that of `weights` in each number of bits that the target holds or, where
    the user names none, some of the target's (`candidates`). What the layers would lose, by the term that the user
    chose, is added up; the sum is the smallest that the limits allow, found by a mixed-integer program (`program.py`).
    Layers that one operator computes agree.

    What `uniform` leaves in float, the head, embeddings, and layers that the predictions do not depend on get what they
    get without a budget. Layers that the user has pinned have one choice.

    Raises:
        UsageError: there is nothing to choose, or the limits cannot be kept.
        ModelError: a layer would lose infinitely much.
    """
    considered = consider(question)
    return spend(question, considered, limits(question.options, considered))


def consider(question: Question) -> Considered:
    """Find what there is to choose from: all that takes time.

    Raises:
        UsageError: there is nothing to choose.
        ModelError: a layer would lose infinitely much.
    """
    options, plan, sites, target = question.options, uniform(question), question.sites, question.target
    infinite = not_finite(sites)
    guided = "token weights" in TERMS[options.error].needs
    wanted = candidates(target) if options.weights is None else None
    offered = {
        weight: [scheme.format]
        if any(site.name in (question.pinned or ()) for site in users)
        else wanted or of_other_bits(scheme.format, target)
        for weight, users in sites_by_weight(sites).items()
        if weight not in infinite
        and all(site.kind == "linear" and site.role != "head" for site in users)
        and (not guided or all(site in question.calibration.token_weights for site in users))
        and (scheme := plan[users[0].name])
    }
    if all(len(choices) < 2 for choices in offered.values()):
        held = ", ".join(sorted({fmt.name for choices in offered.values() for fmt in choices}))
        problem = f"has nothing to choose: the target {target.name} holds {held or 'no layer'}"
        raise UsageError(_asked(options), problem, "choose another format with --weights")
    formats: dict[tuple[Weight, ...], list[Format]] = {}
    for alike in by_operator(sites):
        weights = [site.weight for site in alike if site.weight in offered]
        for offer in dict.fromkeys(tuple(offered[weight]) for weight in weights):  # several where some are pinned
            group = tuple(dict.fromkeys(weight for weight in weights if tuple(offered[weight]) == offer))
            formats[group] = [fmt for fmt in offer if len(offer) == 1 or _shrinks(fmt, group, target.emits)]
    errors = measure_errors(question, formats)
    groups = [group for group in formats if group[0] in errors]  # a walk enters no bodies
    possible = [[fmt for fmt in formats[group] if math.isfinite(_error(errors, group, fmt))] for group in groups]
    for group, left in zip(groups, possible, strict=True):
        if not left:
            tried = ", ".join(fmt.name for fmt in offered[group[0]])
            problem = f"would lose infinitely much, or not become smaller, in any of {tried}"
            raise ModelError(f"weight '{group[0].name}'", problem, "leave it in float with --keep")
    costs = _costs(target.emits)
    limited = _limited(options)
    run = PredictedRun(question, plan) if limited else None
    if run is not None:
        costs |= {resource: partial(run.takes, resource) for resource in limited}
    choices = [
        [
            Choice(
                format=fmt.name,
                error=_error(errors, group, fmt),
                costs={name: sum(cost(fmt, weight) for weight in group) for name, cost in costs.items()},
            )
            for fmt in left
        ]
        for group, left in zip(groups, possible, strict=True)
    ]
    chosen = {weight for group in groups for weight in group}
    rest = size_of_rest(question.model, sites, plan, chosen, {fmt for left in possible for fmt in left}, target.emits)
    run_rest = {} if run is None else {resource: run.rest(resource, chosen) for resource in limited}
    return Considered(groups, choices, possible, errors, rest, run_rest, run.tokens if run else 0)


def limits(options: Options, considered: Considered) -> list[Limit]:
    """What the options let the considered weights take."""
    found = []
    if (bits := options.bits_per_weight) is not None:
        found.append((f"--bpw {bits:g}", "bytes", bits * considered.weights / 8))
    if (size := options.max_size) is not None:
        found.append((f"--max-size {write_size(size)}", "file bytes", float(size - considered.rest)))
    if (rate := options.min_tokens_per_second) is not None:
        seconds = considered.tokens / rate - considered.run_rest["seconds"]
        found.append((f"--min-tokens-per-second {rate:g}", "seconds", seconds))
    if (joules := options.max_joules_per_token) is not None:
        left = considered.tokens * joules - considered.run_rest["joules"]
        found.append((f"--max-joules-per-token {joules:g}", "joules", left))
    return [Limit(option=option, resource=resource, limit=limit) for option, resource, limit in found]


def spend(question: Question, considered: Considered, limits: Sequence[Limit]) -> Plan:
    """The best plan within limits.

    Args:
        question: what was considered.
        considered: what there is to choose from.
        limits: one for a resource at most.

    Raises:
        UsageError: the limits cannot be kept.
    """
    resources = [limit.resource for limit in limits]
    groups = [
        Group([each.error for each in choices], {name: [each.costs[name] for each in choices] for name in resources})
        for choices in considered.choices
    ]
    try:
        solution = solve(groups, {limit.resource: limit.limit for limit in limits})
    except InfeasibleError as error:
        raise _too_little(limits, error.least, considered) from error
    plan = uniform(question)
    names: dict[Weight, list[str]] = {}
    for site in question.sites:
        names.setdefault(site.weight, []).append(site.name)
    said = []
    for group, choices, formats, index in zip(
        considered.groups, considered.choices, considered.formats, solution.taken, strict=True
    ):
        sites = [name for weight in group for name in names[weight]]
        said.append(Choices(sites=sites, weights=_numbers(group), chosen=choices[index].format, choices=choices))
        for weight in group:
            errors = {fmt.name: error for fmt, error in considered.errors[weight].items()}
            for name in names[weight]:
                scheme = plan[name]
                assert scheme is not None
                plan[name], plan.errors[name] = Scheme(formats[index], scheme.activation), errors
    costs, prices = solution.costs, solution.relaxation.prices
    spent = [each.model_copy(update={"used": costs[each.resource], "price": prices[each.resource]}) for each in limits]
    term = question.options.error
    plan.account = Account(
        term=term,
        unit=TERMS[term].unit,
        expected_error=solution.error,
        least_error=solution.relaxation.error,
        limits=spent,
        groups=said,
    )
    bits = 8 * plan.account.used("bytes") / considered.weights
    _log.info("%.3f bits a weight, expected error (%s) %.4g", bits, term, solution.error)
    return plan


def _too_little(limits: Sequence[Limit], least: dict[str, float], considered: Considered) -> UsageError:
    """The nearest limit that can be kept, as the option would say it."""
    limit = next(each for each in limits if each.resource in least)
    value, wrong, remedy = least[limit.resource], "is too little", "give more"
    if limit.resource == "bytes":
        takes = f"the smallest formats take {math.ceil(8e3 * value / considered.weights) / 1e3:.3f} bits"
    elif limit.resource == "seconds":
        fastest = considered.tokens / (value + considered.run_rest["seconds"])
        takes = f"the fastest formats are predicted to give {math.floor(10 * fastest) / 10:g}"
        wrong, remedy = "is too much", "ask for less, or give less to --head, or choose other --activations"
    elif limit.resource == "joules":
        least_joules = (value + considered.run_rest["joules"]) / considered.tokens
        takes = f"the thriftiest formats are predicted to take {_rounded_up(least_joules)}"
        remedy = "give more, or less to --head, or choose other --activations"
    else:
        rest = write_size(considered.rest)
        takes = f"the smallest formats make {write_size(value + considered.rest)}, {rest} of it besides linear layers"
        remedy = "give more, or less to --head and --embedding"
    others = " and ".join(each.option for each in limits if each is not limit)
    return UsageError(limit.option, f"{wrong}: {takes}{f' beside {others}' if others else ''}", remedy)


def _limited(options: Options) -> list[Resource]:
    """What of a run has a limit."""
    limits: dict[Resource, float | None] = {
        "seconds": options.min_tokens_per_second,
        "joules": options.max_joules_per_token,
    }
    return [resource for resource, limit in limits.items() if limit is not None]


def _rounded_up(number: float) -> str:
    """To three digits, so that it can be kept."""
    unit = 10.0 ** (math.floor(math.log10(number)) - 2)
    return f"{math.ceil(number / unit) * unit:.3g}"


def _asked(options: Options) -> str:
    return options.limits[0] if options.bits_per_weight is None else f"--bpw {options.bits_per_weight:g}"


def _error(errors: Errors, group: Sequence[Weight], fmt: Format) -> float:
    return sum(errors[weight][fmt] for weight in group)


def _shrinks(fmt: Format, group: Sequence[Weight], dialect: Dialect) -> bool:
    """Whether packing makes the weights smaller: rows and columns are padded."""
    packed = sum(dialect.weight_bytes(fmt, weight) for weight in group)
    return packed < sum(weight.nbytes for weight in group)


def _numbers(group: Sequence[Weight]) -> int:
    return sum(weight.out_features * weight.in_features for weight in group)
