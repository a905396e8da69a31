"""Every allocation by its name: a new one is one module with one function, and one entry in `ALLOCATIONS`.

A package adds its own by an entry point of the group `qxcompiler.allocations`.
"""

from __future__ import annotations

from qxcompiler.allocation.budget import budget
from qxcompiler.allocation.question import Allocation
from qxcompiler.allocation.uniform import uniform
from qxcompiler.extensions import named

__all__ = ["ALLOCATIONS", "find_allocation"]

ALLOCATIONS: dict[str, Allocation] = {"uniform": uniform, "budget": budget}


def find_allocation(name: str) -> Allocation:
    """The allocation of that name.

    Raises:
        UsageError: there is none.
    """
    return named("allocations", name, ALLOCATIONS)
