"""What an allocation is asked, and what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from qxcompiler.allocation.plan import Plan
from qxcompiler.calibration.walk import Calibration
from qxcompiler.graph import Site
from qxcompiler.options import Options
from qxcompiler.targets import Target

__all__ = ["Allocation", "Question"]


@dataclass(frozen=True)
class Question:
    """What an allocation answers with a plan.

    Attributes:
        model: normalized.
        sites: all of them.
        target: what it can hold and multiply.
        options: what the user asks for; `weights`, `activations`, `head`, `embedding` and `keep` are wishes.
        calibration: walks over the model, for the errors that formats would make; without samples there are none.
        pinned: what the user has decided on already, of some sites; None where of none.
        incomparable: why formats cannot be compared; empty where they can.
    """

    model: ir.Model
    sites: Sequence[Site]
    target: Target
    options: Options
    calibration: Calibration
    pinned: Plan | None = None
    incomparable: str = ""


class Allocation(Protocol):
    """A function from a question to a scheme, or None, for every site."""

    def __call__(self, question: Question, /) -> Plan: ...
