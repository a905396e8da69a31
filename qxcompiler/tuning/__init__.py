"""What is learned with derivatives, through the whole model."""

from __future__ import annotations

from qxcompiler.tuning.tuner import Tuner, Tuning

__all__ = ["Tuner", "Tuning"]
