"""Bits where they count: the format of every linear layer, under limits on what the model may take."""

from __future__ import annotations

__all__ = ["Considered", "budget", "consider", "limits", "spend"]

import logging
import math
from collections.abc import Sequence

from qxcompiler.allocation.account import Account, Choices, Limit
from qxcompiler.allocation.considered import Considered, NoChoiceError, consider, numbers
from qxcompiler.allocation.errors import TERMS
from qxcompiler.allocation.plan import Plan
from qxcompiler.allocation.program import Group, InfeasibleError, solve
from qxcompiler.allocation.question import Question
from qxcompiler.allocation.size import write_size
from qxcompiler.allocation.uniform import uniform
from qxcompiler.errors import UsageError
from qxcompiler.formats import Scheme
from qxcompiler.graph import Weight
from qxcompiler.options import Options

_log = logging.getLogger(__name__)

# Of what one format takes: sums in another order differ, and no cost model predicts a hundredth of a run.
_LEEWAY = {"bytes": 1 + 1e-6, "seconds": 1.01}


def budget(question: Question) -> Plan:
    """Spend bytes on the linear layers where the model needs them most.

    Every layer gets one of several formats: that of `weights` in each number of bits that the target holds or, where
    the user names none, some of the target's (`candidates`). What the layers would lose, by the term that the user
    chose, is added up; the sum is the smallest that the limits allow, found by a mixed-integer program (`program.py`).
    Layers that one operator computes agree.

    Where the user gives no limit, it is what one format everywhere would take, the one that `uniform` chooses: so many
    bytes, and so many seconds as the cost model predicts, if the target says what that reads. Where there is nothing to
    compare then, that format is what every layer gets.

    What `uniform` leaves in float, the head, embeddings, and layers that the predictions do not depend on get what they
    get without a budget. Layers that the user has pinned have one choice.

    Raises:
        UsageError: there is nothing to choose, or the limits cannot be kept.
        ModelError: a layer would lose infinitely much.
    """
    if question.incomparable:
        return uniform(question)
    try:
        considered = consider(question)
    except NoChoiceError:
        if question.options.limits:
            raise
        return uniform(question)
    return spend(question, considered, limits(question.options, considered))


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
    if not options.limits:
        takes = {name: takes for name, takes in considered.uniform.items() if name in _LEEWAY}
        found = [(f"{name} of one format", name, _LEEWAY[name] * most) for name, most in takes.items()]
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
        said.append(Choices(sites=sites, weights=numbers(group), chosen=choices[index].format, choices=choices))
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


def _rounded_up(number: float) -> str:
    """To three digits, so that it can be kept."""
    unit = 10.0 ** (math.floor(math.log10(number)) - 2)
    return f"{math.ceil(number / unit) * unit:.3g}"
