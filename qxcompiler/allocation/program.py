"""The mixed-integer program: one choice for each group, the smallest sum of errors that all limits allow."""

from __future__ import annotations

__all__ = ["Group", "InfeasibleError", "Relaxation", "Solution", "relax", "solve"]

import ctypes
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_array, csr_array, vstack

_EXACT = 1e-4  # the share of the best sum of errors that the solver may miss
_TOLERANCE = 2e-6  # the share of a limit, at most, that the solver takes for nothing
_SUM = 100.0  # what the best sum of errors is near to for the solver, which takes 1e-6 for nothing

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Sites that agree: one of several choices is taken for all of them. One that is pinned has a single choice.

    Attributes:
        errors: of every choice, at least 0.
        costs: of every choice, by the name of the resource that it takes from, at least 0.
    """

    errors: Sequence[float]
    costs: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Relaxation:
    """The best that mixtures of choices can do: no whole choices do better.

    Attributes:
        shares: for each group, what of each choice is taken: they sum to 1.
        error: the sum of errors.
        prices: of each limited resource: by how much the sum of errors falls for one unit more of it.
    """

    shares: list[Floats]
    error: float
    prices: dict[str, float]


@dataclass(frozen=True)
class Solution:
    """The best choices.

    Attributes:
        taken: for each group, the index of its choice.
        error: the sum of errors.
        costs: the sum of costs of every limited resource.
        relaxation: what mixtures of choices could do.
    """

    taken: list[int]
    error: float
    costs: dict[str, float]
    relaxation: Relaxation


class InfeasibleError(Exception):
    """No choices keep all limits.

    Args:
        least: limits that can be kept: of each resource named the least sum of costs that leaves the limits of the
            others kept; where changing one limit is not enough, the least sums whatever the others.
    """

    def __init__(self, least: Mapping[str, float]) -> None:
        super().__init__(", ".join(f"{name}: {value:g}" for name, value in least.items()))
        self.least = dict(least)


def solve(groups: Sequence[Group], limits: Mapping[str, float]) -> Solution:
    """Take one choice for each group (MXQ, Zhang et al. 2024; there the one limit is on bits).

    Args:
        groups: at least one.
        limits: what the costs may sum to, by resource.

    Raises:
        InfeasibleError: no choices keep all limits.
    """
    problem = _Problem(groups)
    try:
        relaxation = _relax(problem, limits)
        taken = problem.best(problem.errors * _scale(relaxation.error, problem.errors), limits)
    except InfeasibleError:
        taken = None
    if taken is None:
        raise InfeasibleError(_least(problem, limits))
    costs = {name: float(problem.costs(name)[taken].sum()) for name in limits}
    within = (taken - problem.starts).tolist()
    return Solution(within, float(problem.errors[taken].sum()), costs, relaxation)


def relax(groups: Sequence[Group], limits: Mapping[str, float]) -> Relaxation:
    """Solve the linear relaxation, in which a group may take a mixture of its choices.

    Raises:
        InfeasibleError: no mixtures keep all limits.
    """
    return _relax(_Problem(groups), limits)


class _Problem:
    """The choices of all groups in one row."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.errors = np.concatenate([np.asarray(group.errors, float) for group in groups])
        sizes = np.array([len(group.errors) for group in groups])
        self.starts = np.cumsum(sizes) - sizes
        self._groups = groups
        columns = np.arange(len(self.errors))
        self.one_each = csr_array(
            coo_array((np.ones(len(columns)), (np.repeat(np.arange(len(groups)), sizes), columns)))
        )

    def costs(self, name: str) -> Floats:
        return np.concatenate([np.asarray(group.costs[name], float) for group in self._groups])

    def rows(self, limits: Mapping[str, float]) -> tuple[csr_array, Floats, Floats]:
        """What stays below 1 (0 for a limit of 0), the limits so, and the units."""
        units = np.array([limit if limit > 0 else 1.0 for limit in limits.values()])
        matrix = vstack([csr_array(self.costs(name)[None] / unit) for name, unit in zip(limits, units, strict=True)])
        return csr_array(matrix), np.array([*limits.values()]) / units, units

    def best(self, objective: Floats, limits: Mapping[str, float]) -> npt.NDArray[np.int64] | None:
        """The indices of the choices with the smallest sum of an objective; None if none keep the limits."""
        for slack in (0.0, _TOLERANCE):  # what the solver takes for nothing is kept free only if it uses it
            constraints = [LinearConstraint(self.one_each, 1, 1)]
            if limits:
                matrix, bounds, _ = self.rows(limits)
                constraints.append(LinearConstraint(matrix, ub=bounds * (1 - slack)))
            with _without_its_notes():
                solution = milp(
                    objective,
                    integrality=np.ones(len(objective)),
                    bounds=Bounds(0, 1),
                    constraints=constraints,
                    options={"mip_rel_gap": _EXACT},
                )
            if solution.x is None:
                break
            taken: npt.NDArray[np.int64] = np.flatnonzero(solution.x > 0.5)
            if all(self.costs(name)[taken].sum() <= limit for name, limit in limits.items()):
                return taken
        return self._smallest(limits)

    def _smallest(self, limits: Mapping[str, float]) -> npt.NDArray[np.int64] | None:
        """For limits so tight that only the cheapest choices keep them, which the solver's tolerance may miss."""
        ends = np.append(self.starts, len(self.errors))[1:]
        for name in limits:
            costs = self.costs(name)
            order = np.lexsort((self.errors, costs))  # of equal costs the smaller error
            rank = np.empty(len(order), int)
            rank[order] = np.arange(len(order))
            spans = zip(self.starts, ends, strict=True)
            taken = np.array([start + int(rank[start:end].argmin()) for start, end in spans])
            if all(self.costs(each)[taken].sum() <= limit for each, limit in limits.items()):
                return taken
        return None


@contextmanager
def _without_its_notes() -> Iterator[None]:
    """Leave out of standard output what HiGHS (in scipy 1.17) prints there: somebody may read JSON."""
    flush = ctypes.CDLL(None).fflush
    flush(None)
    try:
        before = os.dup(1)
    except OSError:  # there is none
        yield
        return
    with tempfile.TemporaryFile() as printed:
        try:
            os.dup2(printed.fileno(), 1)
            yield
        finally:
            flush(None)
            os.dup2(before, 1)
            os.close(before)
            printed.seek(0)
            os.write(1, b"".join(line for line in printed if not line.startswith(b"Highs")))


def _relax(problem: _Problem, limits: Mapping[str, float]) -> Relaxation:
    typical = float(sum(np.median(errors) for errors in np.split(problem.errors, problem.starts[1:])))
    scale = _scale(typical, problem.errors)
    matrix, bounds, units = problem.rows(limits) if limits else (None, None, np.ones(0))
    solution = linprog(
        problem.errors * scale,
        A_ub=matrix,
        b_ub=bounds,
        A_eq=problem.one_each,
        b_eq=np.ones(problem.one_each.shape[0]),
        bounds=(0, 1),
        method="highs",
    )
    if solution.x is None:
        raise InfeasibleError({})
    marginals = solution.ineqlin.marginals if limits else np.ones(0)
    prices = {name: max(-float(price), 0.0) for name, price in zip(limits, marginals / units / scale, strict=True)}
    shares = np.split(solution.x, problem.starts[1:])
    return Relaxation(shares, float(problem.errors @ solution.x), prices)


def _scale(error: float, errors: Floats) -> float:
    """What makes the sum of errors a number that the solver's absolute tolerances are small against."""
    if error > 0:
        return _SUM / error
    largest = float(errors.max())
    return 1 / largest if largest > 0 else 1.0


def _least(problem: _Problem, limits: Mapping[str, float]) -> dict[str, float]:
    lowest = {name: float(np.minimum.reduceat(problem.costs(name), problem.starts).sum()) for name in limits}
    if len(limits) == 1:
        return lowest
    least = {}
    for name in limits:
        others = {other: limit for other, limit in limits.items() if other != name}
        costs = problem.costs(name)
        taken = problem.best(costs * _scale(lowest[name], costs), others)
        if taken is not None:
            least[name] = float(costs[taken].sum())
    return least or {name: value for name, value in lowest.items() if value > limits[name]} or lowest
