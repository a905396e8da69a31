"""Dialects: the operators that a target's runtime or compiler takes quantized weights in.

What each can hold, and in how many bytes. The nodes are written by a module of the same name in `passes/emission/`.
"""

from __future__ import annotations

from qxcompiler.dialects.base import Dialect
from qxcompiler.dialects.contrib import CONTRIB
from qxcompiler.dialects.qdq import QDQ
from qxcompiler.dialects.qxc import QXC

__all__ = ["CONTRIB", "DIALECTS", "QDQ", "QXC", "Dialect"]

DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (QXC, QDQ, CONTRIB)}
