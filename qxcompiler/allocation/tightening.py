"""The smallest plan whose measured loss is allowed: what is expected to be lost is corrected by what was measured."""

from __future__ import annotations

__all__ = ["plan_of_size", "plan_within", "tighten"]

import math
from collections.abc import Callable, Sequence

from qxcompiler.allocation.account import Limit
from qxcompiler.allocation.budget import spend
from qxcompiler.allocation.considered import Considered
from qxcompiler.allocation.plan import Plan
from qxcompiler.allocation.program import Group, InfeasibleError, solve
from qxcompiler.allocation.question import Question

_ROUNDS = 6
_AIM = 0.95  # of what is allowed: what is expected is no exact share of what is measured
_STEP = 4.0  # by so much more, at most, may a plan lose than one that was measured
_LEAST_POWER = 0.5  # two noisy measurements tell no more than this, or its inverse
_SMALLER = 0.99  # a plan that is no smaller than this share of another is not worth a compile


def plan_of_size(question: Question, considered: Considered, limits: Sequence[Limit], option: str, most: float) -> Plan:
    """The plan that is expected to lose least in at most so many bytes.

    Args:
        question: what was considered.
        considered: what there is to choose from.
        limits: what the user limits besides.
        option: what the number of bytes comes from.
        most: bytes of packed weights.

    Raises:
        UsageError: the limits cannot be kept.
    """
    given = next((limit for limit in limits if limit.resource == "bytes"), None)
    if given and given.limit <= most:
        return spend(question, considered, limits)
    others = [limit for limit in limits if limit is not given]
    # sums in another order differ
    return spend(question, considered, [*others, Limit(option=option, resource="bytes", limit=most * (1 + 1e-6))])


def plan_within(question: Question, considered: Considered, limits: Sequence[Limit], option: str, most: float) -> Plan:
    """The plan of fewest bytes that is expected to lose at most so much, a sum of errors; else what loses least.

    The other arguments, and what is raised, are those of `plan_of_size`.
    """
    others = {limit.resource: limit.limit for limit in limits}
    groups = [
        Group(
            [each.costs["bytes"] for each in choices],
            {name: [each.costs[name] for each in choices] for name in others}
            | {"error": [each.error for each in choices]},
        )
        for choices in considered.choices
    ]
    try:
        least = solve(groups, others | {"error": most}).error
    except InfeasibleError:
        least = sum(max(each.costs["bytes"] for each in choices) for choices in considered.choices)
    return plan_of_size(question, considered, limits, option, least)


def tighten(
    first: Plan, allowed: float, within: Callable[[float], Plan], measure: Callable[[Plan], float]
) -> Plan | None:
    """Measure plans until one loses as much as is allowed, or little less.

    What is measured is taken to be proportional to what is expected, which is a sum over layers that err alone; after
    two plans, to be a power of it.

    Args:
        first: a plan to begin with.
        allowed: what may be lost, as `measure` counts it.
        within: the smallest plan for an expected error, or the one that loses least.
        measure: what a plan loses, which takes minutes.

    Returns:
        The smallest plan, of those measured, that keeps to what is allowed; None if there is none.
    """
    kept: Plan | None = None
    good, bad = 0.0, float("inf")  # the largest expected error that was found to be allowed, the smallest that was not
    plan, measured = first, (0.0, 0.0)  # the one before: what was expected, and what was measured
    for left in reversed(range(_ROUNDS)):
        loss, expected = measure(plan), _expected(plan)
        if loss <= allowed:
            good = max(good, expected)
            if kept is None or _bytes(plan) < _bytes(kept):
                kept = plan
        else:
            bad = min(bad, expected)
        aim = expected * _step(allowed, loss, _power(measured, expected, loss))
        measured = expected, loss
        if aim >= bad:
            aim = (good + bad) / 2
        if aim <= good:
            break
        plan = within(
            aim if kept is not None or left > 1 else 0.0
        )  # what loses least comes last, before nothing is found
        if _expected(plan) >= bad or (kept is not None and _bytes(plan) > _SMALLER * _bytes(kept)):
            break
    return kept


def _power(before: tuple[float, float], expected: float, loss: float) -> float:
    """The p of loss ~ expected^p, by two plans; 1 if they do not say it."""
    expected_before, loss_before = before
    if min(loss, loss_before, expected, expected_before) <= 0 or expected == expected_before:
        return 1.0
    return min(max(math.log(loss / loss_before) / math.log(expected / expected_before), _LEAST_POWER), 1 / _LEAST_POWER)


def _step(allowed: float, loss: float, power: float) -> float:
    """By how much more may be expected of the next plan."""
    return min(_STEP, (_AIM * allowed / loss) ** (1 / power)) if loss > 0 else _STEP


def _expected(plan: Plan) -> float:
    assert plan.account
    return plan.account.expected_error


def _bytes(plan: Plan) -> float:
    assert plan.account
    return plan.account.used("bytes")
