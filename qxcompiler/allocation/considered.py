"""What there is to choose from where every layer gets a format of its own: formats, their errors, their costs."""

from __future__ import annotations

__all__ = ["Considered", "NoChoiceError", "consider", "numbers"]

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from qxcompiler.allocation.account import Choice
from qxcompiler.allocation.candidates import candidates, of_other_bits
from qxcompiler.allocation.errors import TERMS, Errors, measure_errors
from qxcompiler.allocation.plan import Plan, sites_by_weight
from qxcompiler.allocation.predicted_run import PredictedRun, Resource
from qxcompiler.allocation.question import Question
from qxcompiler.allocation.size import size_of_rest, size_of_weight
from qxcompiler.allocation.uniform import uniform
from qxcompiler.dialects import Dialect
from qxcompiler.errors import ModelError, TargetError, UsageError
from qxcompiler.formats import Format
from qxcompiler.graph import Weight, by_operator, not_finite
from qxcompiler.options import Options

_log = logging.getLogger(__name__)


class NoChoiceError(UsageError):
    """Every layer has one format that it may get."""


@dataclass(frozen=True)
class Considered:
    """What there is to choose from, whatever the limits.

    Attributes:
        groups: weights that get one format.
        choices: what each group could get.
        formats: the same as formats.
        errors: what each format would lose, weight by weight.
        rest: bytes of the compiled model's files besides these weights, at most.
        uniform: what these weights take of each resource, got what `uniform` gives them.
        run_rest: the `seconds` and `joules` that a run takes besides these weights, where they have a limit.
        tokens: what a run gives; 0 where neither has.
    """

    groups: list[tuple[Weight, ...]]
    choices: list[list[Choice]]
    formats: list[list[Format]]
    errors: Errors
    rest: int
    uniform: dict[str, float]
    run_rest: dict[Resource, float]
    tokens: int

    @property
    def weights(self) -> int:
        """How many numbers the weights hold."""
        return sum(map(numbers, self.groups))


def consider(question: Question) -> Considered:
    """Find what there is to choose from: all that takes time.

    Raises:
        NoChoiceError: there is nothing to choose.
        ModelError: a layer would lose infinitely much.
    """
    options, plan, sites, target = question.options, uniform(question), question.sites, question.target
    offered = _offered(question, plan)
    if all(len(choices) < 2 for choices in offered.values()):
        held = ", ".join(sorted({fmt.name for choices in offered.values() for fmt in choices}))
        problem = f"has nothing to choose: the target {target.name} holds {held or 'no layer'}"
        raise NoChoiceError(_asked(options), problem, "choose another format with --weights")
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
    run, limited = _predicted(question, plan)
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
    users = sites_by_weight(sites)
    everywhere = {weight: scheme.format for weight in chosen if (scheme := plan[users[weight][0].name])}
    same = {name: sum(cost(fmt, weight) for weight, fmt in everywhere.items()) for name, cost in costs.items()}
    run_rest = {} if run is None else {resource: run.rest(resource, chosen) for resource in limited}
    return Considered(groups, choices, possible, errors, rest, same, run_rest, run.tokens if run else 0)


def _offered(question: Question, plan: Plan) -> dict[Weight, list[Format]]:
    """The formats that each weight may get, whatever the limits.

    Args:
        question: says what is pinned, and what the errors need.
        plan: of one format everywhere, which is offered too where there is no limit.

    Returns:
        nothing of weights that get what they get without a budget.
    """
    options, target = question.options, question.target
    infinite = not_finite(question.sites)
    guided = "token weights" in TERMS[options.error].needs
    wanted = candidates(target) if options.weights is None else None

    def choices(weight: Weight, fmt: Format) -> list[Format]:
        found = wanted or of_other_bits(fmt, target)
        if options.limits:
            return found
        # what one format takes buys no more than a few layers in two bits more
        near = list(dict.fromkeys([fmt, *(each for each in found if abs(each.bits - fmt.bits) <= 1)]))
        least = min(target.emits.weight_bytes(each, weight) for each in near)
        return near if least < target.emits.weight_bytes(fmt, weight) else [fmt]

    return {
        weight: [scheme.format]
        if any(site.name in (question.pinned or ()) for site in users)
        else choices(weight, scheme.format)
        for weight, users in sites_by_weight(question.sites).items()
        if weight not in infinite
        and all(site.kind == "linear" and site.role != "head" for site in users)
        and (not guided or all(site in question.calibration.token_weights for site in users))
        and (scheme := plan[users[0].name])
    }


def _costs(dialect: Dialect) -> dict[str, Callable[[Format, Weight], float]]:
    """What a weight takes in a format, of each resource that can be limited; `seconds` and `joules` besides."""
    return {"bytes": dialect.weight_bytes, "file bytes": partial(size_of_weight, dialect)}


def _predicted(question: Question, plan: Plan) -> tuple[PredictedRun | None, list[Resource]]:
    """The cost model's run, and what of it is limited."""
    options = question.options
    limits: dict[Resource, float | None] = {
        "seconds": options.min_tokens_per_second,
        "joules": options.max_joules_per_token,
    }
    limited = [resource for resource, limit in limits.items() if limit is not None]
    if limited:
        return PredictedRun(question, plan), limited
    if options.limits:
        return None, []
    try:
        return PredictedRun(question, plan), ["seconds"]
    except (TargetError, ModelError) as error:
        _log.info("chosen by bytes alone: %s", error)
        return None, []


def _asked(options: Options) -> str:
    return str(options.budget_option) if options.bits_per_weight is None else f"--bpw {options.bits_per_weight:g}"


def _error(errors: Errors, group: Sequence[Weight], fmt: Format) -> float:
    return sum(errors[weight][fmt] for weight in group)


def _shrinks(fmt: Format, group: Sequence[Weight], dialect: Dialect) -> bool:
    """Whether packing makes the weights smaller: rows and columns are padded."""
    packed = sum(dialect.weight_bytes(fmt, weight) for weight in group)
    return packed < sum(weight.nbytes for weight in group)


def numbers(group: Sequence[Weight]) -> int:
    """How many numbers some weights hold."""
    return sum(weight.out_features * weight.in_features for weight in group)
