"""The Pareto front: the best plan for each of several budgets, as a table and a picture."""

from __future__ import annotations

__all__ = ["CSV", "PICTURE", "Front", "Point", "find_front", "parse_budgets", "plan_file"]

import csv
import math
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path

from pydantic import BaseModel, Field

from qxcompiler.allocation import TERMS, Account, Question
from qxcompiler.allocation.account import Limit
from qxcompiler.allocation.budget import Considered, consider, spend
from qxcompiler.errors import UsageError

CSV, PICTURE = "pareto.csv", "pareto.svg"
_MOST = 1000  # budgets


class Point(BaseModel):
    """One plan.

    Attributes:
        plan: `mixed`, or the format that all layers have.
        budget: bits a weight that were asked for; None for one format everywhere.
        bits_per_weight: over the layers that had a choice.
        bytes: what these take.
        expected_error: what they lose.
        formats: the format of each group of layers; empty for one format everywhere.
    """

    plan: str
    budget: float | None
    bits_per_weight: float
    bytes: int
    expected_error: float
    formats: list[str]


class Front(BaseModel):
    """The best plans for several budgets, and those with one format everywhere.

    Attributes:
        term: which errors were summed up.
        unit: what they count.
        layers: the groups of layers that had a choice, by the names of their sites.
        points: the fewest bytes first.
        marked: the budget to mark.
        warnings: what a user should know.
        plans: the best plans as files, by name.
    """

    term: str
    unit: str
    layers: list[str]
    points: list[Point]
    marked: float | None
    warnings: list[str]
    plans: dict[str, str] = Field(exclude=True, repr=False)

    def write(self, folder: Path) -> None:
        """Write the table, the plans and, where matplotlib is installed, the picture."""
        for name, text in self.plans.items():
            (folder / name).write_text(text, encoding="utf-8")
        with (folder / CSV).open("w", encoding="utf-8", newline="") as file:
            names = ["plan", "budget", "bits_per_weight", "bytes", "expected_error"]
            table = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
            table.writeheader()
            table.writerows(point.model_dump() for point in self.points)
        try:
            from qxcompiler.report.pareto_picture import draw
        except ImportError:
            self.warnings.append("no picture: matplotlib is not installed (pip install matplotlib)")
        else:
            draw(self, folder / PICTURE)

    @property
    def mixed(self) -> list[Point]:
        """The best plans."""
        return [point for point in self.points if point.budget is not None]


def parse_budgets(budgets: str | Sequence[float]) -> list[float]:
    """Bits a weight of `2.5:5:0.25`, both ends included, or as they are given.

    Raises:
        UsageError: they are none.
    """
    subject = f"--budgets {budgets}" if isinstance(budgets, str) else "budgets"
    try:
        if isinstance(budgets, str):
            first, last, step = map(Decimal, budgets.split(":"))
            if not (0 < first <= last and step > 0 and (last - first) / step < _MOST):
                raise ValueError
            found = [float(first + step * index) for index in range(int((last - first) / step) + 1)]
        else:
            found = sorted(set(map(float, budgets)))
            if not found or len(found) > _MOST or not all(math.isfinite(bits) and bits > 0 for bits in found):
                raise ValueError
    except (ValueError, TypeError, InvalidOperation) as error:
        remedy = "write FIRST:LAST:STEP in bits a weight, such as 2.5:5:0.25"
        raise UsageError(subject, f"not 1 to {_MOST} budgets above 0", remedy) from error
    return found


def find_front(question: Question, budgets: Sequence[float], marked: float | None = None) -> Front:
    """Measure errors once, and solve for every budget.

    Args:
        question: what an allocation is asked.
        budgets: bits a weight; those too small are left out, and named in the front's warnings.
        marked: one more, to mark.

    Raises:
        UsageError: all budgets are too small, or there is nothing to choose.
    """
    considered = consider(question)
    points, plans, warnings = _uniform(considered), {}, []
    for bits in sorted({*budgets, *([] if marked is None else [marked])}):
        limit = Limit(option=f"{bits:g} bits a weight", resource="bytes", limit=bits * considered.weights / 8)
        try:
            plan = spend(question, considered, [limit])
        except UsageError as error:
            if bits == marked or bits == max(budgets):
                raise
            warnings.append(str(error))
            continue
        assert plan.account is not None
        points.append(_point(bits, plan.account, considered))
        plans[plan_file(bits)] = plan.to_yaml(question.target, question.sites)
    points.sort(key=lambda point: point.bytes)
    names = {site.weight: site.name for site in reversed(question.sites)}
    return Front(
        term=question.options.error,
        unit=TERMS[question.options.error].unit,
        layers=["+".join(names[weight] for weight in group) for group in considered.groups],
        points=points,
        marked=marked,
        warnings=warnings,
        plans=plans,
    )


def plan_file(bits: float) -> str:
    """The name of the file with the best plan for so many bits a weight."""
    return f"plan-{bits:g}.yaml"


def _point(bits: float, account: Account, considered: Considered) -> Point:
    used = account.used("bytes")
    return Point(
        plan="mixed",
        budget=bits,
        bits_per_weight=8 * used / considered.weights,
        bytes=round(used),
        expected_error=account.expected_error,
        formats=[group.chosen for group in account.groups],
    )


def _uniform(considered: Considered) -> list[Point]:
    """One format everywhere, of those that all layers could have."""
    found = []
    for choice in considered.choices[0]:
        same = [each for choices in considered.choices for each in choices if each.format == choice.format]
        if len(same) == len(considered.choices):
            size = sum(each.costs["bytes"] for each in same)
            found.append(
                Point(
                    plan=choice.format,
                    budget=None,
                    bits_per_weight=8 * size / considered.weights,
                    bytes=round(size),
                    expected_error=sum(each.error for each in same),
                    formats=[],
                )
            )
    return found
