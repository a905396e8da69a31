"""The mixed-integer program of a budget: brute force, a closed form, limits that cannot be kept."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import milp

from qxcompiler.allocation import program
from qxcompiler.allocation.program import Group, InfeasibleError, relax, solve


@st.composite
def problems(draw, resources=("bytes", "seconds")):
    groups = []
    for _ in range(draw(st.integers(1, 5))):
        size = draw(st.integers(1, 4))

        def numbers(size=size):
            return [float(draw(st.integers(0, 1000))) for _ in range(size)]

        groups.append(Group(numbers(), {name: numbers() for name in resources}))
    return groups


def every_choice(groups):
    """Errors and costs of every combination of choices."""
    for taken in itertools.product(*(range(len(group.errors)) for group in groups)):
        error = sum(group.errors[index] for group, index in zip(groups, taken, strict=True))
        costs = {
            name: sum(group.costs[name][index] for group, index in zip(groups, taken, strict=True))
            for name in groups[0].costs
        }
        yield error, costs


def keeps(costs, limits):
    return all(costs[name] <= limit for name, limit in limits.items())


@settings(deadline=None, max_examples=150)
@given(problems(), st.integers(0, 4000), st.integers(0, 4000))
def test_it_finds_what_brute_force_finds(groups, size, seconds):
    limits = {"bytes": float(size), "seconds": float(seconds)}
    allowed = [error for error, costs in every_choice(groups) if keeps(costs, limits)]
    if not allowed:
        with pytest.raises(InfeasibleError):
            solve(groups, limits)
        return
    solution = solve(groups, limits)
    chosen = list(zip(groups, solution.taken, strict=True))
    assert solution.error == sum(group.errors[index] for group, index in chosen)
    assert solution.costs == {name: sum(group.costs[name][index] for group, index in chosen) for name in limits}
    assert keeps(solution.costs, limits)  # not by a millionth more
    assert solution.error <= min(allowed) * (1 + 1e-4) + 1e-4
    assert solution.relaxation.error <= solution.error * (1 + 1e-6) + 1e-6


@settings(deadline=None, max_examples=60)
@given(problems(), st.integers(0, 2000), st.integers(0, 2000))
def test_what_cannot_be_kept_is_named_with_what_can(groups, size, seconds):
    limits = {"bytes": float(size), "seconds": float(seconds)}
    possible = [costs for _, costs in every_choice(groups)]
    assume(not any(keeps(costs, limits) for costs in possible))
    with pytest.raises(InfeasibleError) as raised:
        solve(groups, limits)
    least = raised.value.least
    assert least
    for name, value in least.items():
        other = next(each for each in limits if each != name)
        fitting = [costs[name] for costs in possible if costs[other] <= limits[other]]
        # what one limit alone can mend, or else the least of all
        assert value == pytest.approx(min(fitting or [costs[name] for costs in possible]), rel=2e-4)
        if fitting:
            solve(groups, limits | {name: value})


def test_without_a_limit_every_group_takes_its_best():
    groups = [Group([3, 1, 2], {}), Group([5.0], {})]
    assert solve(groups, {}).taken == [1, 0]


def test_a_limit_just_kept_is_kept():
    groups = [Group([9.0, 1.0], {"bytes": [10, 11]}), Group([8.0, 1.0], {"bytes": [7_000_000, 7_000_001]})]
    assert solve(groups, {"bytes": 7_000_010}).taken == [0, 0]  # one byte more is 1e-7 of the limit
    assert solve(groups, {"bytes": 7_000_011}).costs["bytes"] <= 7_000_011
    assert solve(groups, {"bytes": 7_000_012}).costs["bytes"] == 7_000_012
    with pytest.raises(InfeasibleError) as raised:
        solve(groups, {"bytes": 7_000_009})
    assert raised.value.least == {"bytes": 7_000_010}


def test_what_the_solver_prints_is_no_output_of_ours(monkeypatch, capfd):
    """HiGHS leaves a line on standard output now and then, through C's own buffer."""
    libc = ctypes.CDLL(None)

    def loud(*arguments, **options):
        libc.puts(b"HighsMipSolverData::something")
        libc.puts(b"what another thread says")
        return milp(*arguments, **options)

    monkeypatch.setattr(program, "milp", loud)
    print("before", flush=True)
    solve([Group([1.0, 2.0], {"size": [2.0, 1.0]})], {"size": 1.0})
    print("after")
    libc.fflush(None)
    captured = capfd.readouterr()
    assert captured.out == "before\nwhat another thread says\nafter\n"
    assert not captured.err


def test_a_price_says_what_a_little_more_would_save():
    draws = np.random.default_rng(0)
    bits = np.array([2.0, 3, 4, 5, 6, 8])
    groups = [Group(draws.lognormal(0, 2) * 4**-bits, {"bits": bits}) for _ in range(200)]
    here, there = (relax(groups, {"bits": 200 * limit}) for limit in (3.5, 3.501))
    assert here.prices["bits"] == pytest.approx((here.error - there.error) / 0.2, rel=0.02)
    assert relax(groups, {"bits": 200 * 9.0}).prices["bits"] == 0  # nothing wants what is left over


@pytest.mark.parametrize("mean_bits", [1.0, 2.5, 4.0])
def test_fine_steps_give_the_closed_form(mean_bits):
    """BAQ's (Zhang et al. 2025): errors n c 4^-b at n b bits fall most where all c 4^-b that take bits are equal.

    b = max(0, log4(c / level)), the level such that the bits sum up: reverse water-filling.
    """
    draws = np.random.default_rng(0)
    c, n = draws.lognormal(0, 2, 60), draws.integers(1, 20, 60) * 1000.0
    steps = np.arange(0, 12, 0.02)
    groups = [Group(each * size * 4**-steps, {"bits": size * steps}) for each, size in zip(c, n, strict=True)]
    limit = mean_bits * n.sum()
    found = relax(groups, {"bits": limit})

    low, high = c.min() * 4.0**-12, c.max()
    for _ in range(200):
        level = np.sqrt(low * high)
        bits = np.maximum(0, np.log(c / level) / np.log(4))
        low, high = (level, high) if (n * bits).sum() > limit else (low, level)
    assert found.error == pytest.approx((n * c * 4**-bits).sum(), rel=1e-3)
    assert [float(share @ steps) for share in found.shares] == pytest.approx(bits, abs=0.03)
    assert found.prices["bits"] == pytest.approx(np.log(4) * level, rel=0.03)  # the slope of c 4^-b at the level
    assert solve(groups, {"bits": limit}).error == pytest.approx(found.error, rel=1e-3)


def test_a_large_program_spends_its_budget():
    """8 blocks of 7 layers with 24 choices each; 80 blocks are timed in `benchmarks/allocation.py`."""
    draws = np.random.default_rng(0)
    bits = (np.array([2, 3, 4, 5, 6, 8])[:, None] + 16 / np.array([32, 64, 128, 256])).ravel()
    weights = np.tile([4, 1, 1, 4, 11, 11, 11], 8) * 2.0**20
    groups = [Group(draws.lognormal(0, 1.5) * each * 4**-bits, {"bytes": each * bits / 8}) for each in weights]
    limit = 3.14 * weights.sum() / 8
    solution = solve(groups, {"bytes": limit})
    assert 0.9999 * limit <= solution.costs["bytes"] <= limit
    assert solution.error <= solution.relaxation.error * (1 + 1e-3)
