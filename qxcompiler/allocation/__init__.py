"""Choose a scheme for every site: the result is a plan."""

from __future__ import annotations

from qxcompiler.allocation.account import Account
from qxcompiler.allocation.errors import TERMS
from qxcompiler.allocation.plan import FLOAT, Plan, load_plan, sites_by_weight
from qxcompiler.allocation.question import Allocation, Question
from qxcompiler.allocation.registry import ALLOCATIONS, find_allocation

__all__ = [
    "ALLOCATIONS",
    "FLOAT",
    "TERMS",
    "Account",
    "Allocation",
    "Plan",
    "Question",
    "find_allocation",
    "load_plan",
    "sites_by_weight",
]
