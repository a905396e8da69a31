"""What is learned with derivatives, through the whole model."""

from __future__ import annotations

from qxcompiler.tuning.tune import Tuning, tune

__all__ = ["Tuning", "tune"]
