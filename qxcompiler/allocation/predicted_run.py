"""What a run of a model takes on a target, as a sum over its layers in the formats that they could have."""

from __future__ import annotations

__all__ = ["PredictedRun", "Resource"]

from collections.abc import Collection
from functools import cache
from typing import Literal, TypeAlias

from qxcompiler.allocation.plan import Plan, sites_by_weight
from qxcompiler.allocation.question import Question
from qxcompiler.cost import CONTEXT, Cost, Estimate, estimate, item_cost, phases, untold_sizes, workload
from qxcompiler.errors import TargetError
from qxcompiler.formats import Format, Scheme
from qxcompiler.graph import Weight

Resource: TypeAlias = Literal["seconds", "joules"]


class PredictedRun:
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
        sizes = untold_sizes(question.model, question.calibration.samples)
        self._work = workload(question.model, question.sites, phase, sizes)
        self.tokens = self._work.tokens
        self._items = {item.name: item for item in self._work.items if item.is_site}
        self._users = sites_by_weight(question.sites)
        self._costs = cache(self._costs_of)

    def takes(self, resource: Resource, fmt: Format, weight: Weight) -> float:
        """What all that multiplies with a weight takes.

        Raises:
            TargetError: the descriptor lacks an energy, and joules are asked for.
        """
        return sum(self._of(cost, resource) for cost in self._costs(fmt, weight))

    def rest(self, resource: Resource, chosen: Collection[Weight]) -> float:
        """What everything takes besides the weights whose formats are chosen.

        Raises:
            TargetError: as `takes`.
        """
        whole = self._of(estimate(self._work, self._target, self._plan), resource)
        planned = {weight: scheme.format for weight in chosen if (scheme := self._plan[self._users[weight][0].name])}
        return whole - sum(self.takes(resource, fmt, weight) for weight, fmt in planned.items())

    def _costs_of(self, fmt: Format, weight: Weight) -> list[Cost]:
        return [
            item_cost(self._target, self._items[site.name], Scheme(fmt, scheme.activation))
            for site in self._users[weight]
            if site.name in self._items and (scheme := self._plan[site.name])
        ]

    def _of(self, cost: Cost | Estimate, resource: Resource) -> float:
        found = cost.seconds if resource == "seconds" else cost.joules
        if found is None:
            problem = "does not say the energy of all that the model uses"
            raise TargetError(f"target {self._target.name}", problem, "add what is missing (docs/targets.md)")
        return found
