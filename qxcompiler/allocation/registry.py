"""Every allocation by its name: a new one is one module with one function, and one entry in `ALLOCATIONS`.

A package adds its own by an entry point of the group `qxcompiler.allocations`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from qxcompiler.allocation.plan import Plan
from qxcompiler.allocation.uniform import uniform_plan
from qxcompiler.calibration.walk import Calibration
from qxcompiler.errors import UsageError
from qxcompiler.extensions import extensions
from qxcompiler.graph import Site
from qxcompiler.options import Options
from qxcompiler.targets import Target

__all__ = ["ALLOCATIONS", "Allocation", "Question", "find_allocation"]


@dataclass(frozen=True)
class Question:
    """What an allocation answers with a plan.

    Attributes:
        model: normalized.
        sites: all of them.
        target: what it can hold and multiply.
        options: what the user asks for; `weights`, `activations`, `head`, `embedding` and `keep` are wishes.
        calibration: walks over the model, for the errors that formats would make; without samples there are none.
    """

    model: ir.Model
    sites: Sequence[Site]
    target: Target
    options: Options
    calibration: Calibration


class Allocation(Protocol):
    """A function from a question to a scheme, or None, for every site."""

    def __call__(self, question: Question, /) -> Plan: ...


def uniform(question: Question) -> Plan:
    """One scheme for all linear layers, one for the head, one for embeddings: what the user or the target prefers."""
    options = question.options
    return uniform_plan(
        question.sites,
        question.target,
        weights=options.weights,
        activations=options.activations,
        head=options.head,
        embedding=options.embedding,
        keep=options.keep,
    )


ALLOCATIONS: dict[str, Allocation] = {"uniform": uniform}


def find_allocation(name: str) -> Allocation:
    """The allocation of that name.

    Raises:
        UsageError: there is none.
    """
    every: dict[str, Allocation] = extensions("allocations") | ALLOCATIONS
    if name not in every:
        raise UsageError(repr(name), "not an allocation", f"choose one of {', '.join(every)}")
    return every[name]
