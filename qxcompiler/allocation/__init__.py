"""Choose a scheme for every site: the result is a plan."""

from __future__ import annotations

from qxcompiler.allocation.plan import FLOAT, Plan, load_plan, sites_by_weight, uniform_plan

__all__ = ["FLOAT", "Plan", "load_plan", "sites_by_weight", "uniform_plan"]
