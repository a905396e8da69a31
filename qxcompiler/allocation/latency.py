"""How long a model takes on a target, as a sum over its layers in the formats that they could have."""

from __future__ import annotations

__all__ = ["Latency"]

from collections.abc import Collection
from functools import cache

from qxcompiler.allocation.plan import Plan, sites_by_weight
from qxcompiler.allocation.question import Question
from qxcompiler.cost import CONTEXT, estimate, item_cost, phases, workload
from qxcompiler.formats import Format, Scheme
from qxcompiler.graph import Weight


class Latency:
    """What the target's cost model says of one run: a decoded token, or a pass over an input.

    Args:
        question: the model and the target.
        plan: the scheme of every site, for those whose format is not chosen.

    Attributes:
        tokens: what a run gives.

    Raises:
        TargetError: the target's descriptor lacks what the cost model reads.
        ModelError: sizes of the model do not follow from those of its inputs.
    """

    def __init__(self, question: Question, plan: Plan) -> None:
        phase, *_ = phases(question.model, CONTEXT)
        self._target, self._plan = question.target, plan
        question.target.check_cost()
        self._work = workload(question.model, question.sites, phase)
        self.tokens = self._work.tokens
        self._items = {item.name: item for item in self._work.items if item.is_site}
        self._users = sites_by_weight(question.sites)
        self.seconds = cache(self._seconds)

    def _seconds(self, fmt: Format, weight: Weight) -> float:
        """Of all that multiplies with a weight."""
        found = 0.0
        for site in self._users[weight]:
            if site.name in self._items and (scheme := self._plan[site.name]):
                item = self._items[site.name]
                found += item_cost(self._target, item, Scheme(fmt, scheme.activation)).seconds
        return found

    def rest(self, chosen: Collection[Weight]) -> float:
        """Seconds of everything besides the weights whose formats are chosen."""
        whole = estimate(self._work, self._target, self._plan).seconds
        planned = {weight: scheme.format for weight in chosen if (scheme := self._plan[self._users[weight][0].name])}
        return whole - sum(self.seconds(fmt, weight) for weight, fmt in planned.items())
