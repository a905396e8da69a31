"""Choose a scheme for every site: the result is a plan."""

from __future__ import annotations

from qxcompiler.allocation.plan import FLOAT, Plan, load_plan, sites_by_weight
from qxcompiler.allocation.registry import ALLOCATIONS, Allocation, Question, find_allocation
from qxcompiler.allocation.uniform import uniform_plan

__all__ = [
    "ALLOCATIONS",
    "FLOAT",
    "Allocation",
    "Plan",
    "Question",
    "find_allocation",
    "load_plan",
    "sites_by_weight",
    "uniform_plan",
]
