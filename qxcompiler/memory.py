"""Memory that is free, and that the process still holds."""

from __future__ import annotations

__all__ = ["give_back"]

import ctypes
import sys


def give_back() -> None:
    """Give the system what was freed, where the C library can be asked to: glibc keeps it for what may come.

    Activations and gradients of many sizes, freed in another order than they came in, leave gaps that add up to more
    than what is in use.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(ctypes.c_size_t(0))
