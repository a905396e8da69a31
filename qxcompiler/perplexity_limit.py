"""The smallest model whose perplexity is near enough to the original's: compiled, measured, and compiled again."""

from __future__ import annotations

__all__ = ["MeasuredPlan", "PerplexityLimit", "smallest_within"]

import logging
import math
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from qxcompiler.allocation import Plan, Question
from qxcompiler.allocation.budget import consider, limits
from qxcompiler.allocation.tightening import plan_of_size, plan_within, tighten
from qxcompiler.calibration.samples import Sample
from qxcompiler.derivatives import LOGITS, compared_output
from qxcompiler.errors import UsageError
from qxcompiler.evaluation.language import evaluate_language
from qxcompiler.evaluation.running import Runner
from qxcompiler.options import LIMITS

_log = logging.getLogger(__name__)

Compiled = TypeVar("Compiled")


class MeasuredPlan(BaseModel):
    """One plan that was compiled and measured.

    Attributes:
        bits_per_weight: over the layers that had a choice.
        expected_error: what they were expected to lose.
        increase: of the perplexity, as a share of the original's.
    """

    bits_per_weight: float
    expected_error: float
    increase: float


class PerplexityLimit(BaseModel):
    """How a limit of perplexity was kept.

    Attributes:
        allowed: the increase, as a share of the original's perplexity.
        samples: held back from calibration, on which plans were measured.
        measured: the plans, in their order.
        kept: which of them it is that was compiled, the smallest that keeps the limit.
    """

    allowed: float
    samples: int
    measured: list[MeasuredPlan]
    kept: int


def smallest_within(
    question: Question,
    reference: Runner,
    held_back: Sequence[Sample],
    stage: Path,
    carry_out: Callable[[Plan, Path], tuple[Compiled, Path]],
) -> tuple[Compiled, PerplexityLimit]:
    """Compile plans until one costs as much perplexity as `max_perplexity_increase` allows, or little less.

    Args:
        question: what an allocation is asked.
        reference: the original.
        held_back: samples to measure on.
        stage: where to write what was compiled of the plan that is kept.
        carry_out: compiles a plan to a folder; returns what came of it, and the model's file.

    Raises:
        UsageError: the model is none of language, or no plan keeps the limit.
    """
    share = question.options.max_perplexity_increase
    assert share is not None
    option = f"{LIMITS['max_perplexity_increase']} {100 * share:g}%"
    if compared_output(question.model) != LOGITS:
        raise UsageError(option, "is for a language model, which has an output `logits`", "give another limit")
    considered = consider(question)
    dialect = question.target.emits
    if unknown := next((fmt for formats in considered.formats for fmt in formats if not dialect.runs(fmt)), None):
        problem = f"cannot be measured: onnxruntime cannot run {unknown.name} in dialect {question.target.dialect}"
        raise UsageError(option, problem, "choose other --weights, or give another limit")
    allowed = math.log1p(share)
    measured: list[MeasuredPlan] = []
    plans: list[Plan] = []
    best: dict[int, Compiled] = {}  # by its place among the plans; of others nothing is kept

    def measure(plan: Plan) -> float:
        index = len(plans)
        folder = _folder(stage, index)
        folder.mkdir()
        compiled, file = carry_out(plan, folder)
        figures = evaluate_language(
            Runner(file, library=dialect.library), reference, [(sample, sample) for sample in held_back]
        )
        assert figures.reference_perplexity and plan.account
        ratio = figures.perplexity / figures.reference_perplexity
        bits = 8 * _bytes(plan) / considered.weights
        _log.info("%.3f bits a weight: perplexity %+.2f %%", bits, 100 * (ratio - 1))
        expected = plan.account.expected_error
        measured.append(MeasuredPlan(bits_per_weight=bits, expected_error=expected, increase=ratio - 1))
        plans.append(plan)
        loss = math.log(ratio)
        if loss <= allowed and all(_bytes(plan) < _bytes(plans[other]) for other in best):
            for other in best:
                shutil.rmtree(_folder(stage, other))
            best.clear()
            best[index] = compiled
        else:
            shutil.rmtree(folder)
        return loss

    given = limits(question.options, considered)
    first = plan_of_size(question, considered, given, option, considered.uniform["bytes"])
    kept = tighten(first, allowed, partial(plan_within, question, considered, given, option), measure)
    if kept is None:
        nearest = min(measured, key=lambda each: each.increase)
        problem = f"cannot be kept: {nearest.bits_per_weight:.3f} bits a weight cost {nearest.increase:.2%}"
        raise UsageError(option, problem, "allow more, or give a target or --weights of more bits")
    ((index, compiled),) = best.items()
    for file in _folder(stage, index).iterdir():
        file.rename(stage / file.name)
    _folder(stage, index).rmdir()
    return compiled, PerplexityLimit(allowed=share, samples=len(held_back), measured=measured, kept=index)


def _folder(stage: Path, index: int) -> Path:
    return stage / f"plan-{index}"


def _bytes(plan: Plan) -> float:
    assert plan.account
    return plan.account.used("bytes")
