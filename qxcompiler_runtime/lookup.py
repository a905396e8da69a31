"""Tokens that a text may go on with, because it did so before: speculative decoding by prompt look-up.

A. Saxena, Prompt Lookup Decoding, 2023, https://github.com/apoorvumang/prompt-lookup-decoding.
"""

from __future__ import annotations

__all__ = ["look_up"]

from collections.abc import Sequence

import numpy as np

_LONGEST = 3  # tokens that have to occur again


def look_up(tokens: Sequence[int], count: int) -> list[int]:
    """Up to `count` tokens that followed the last three, two or one where they last occurred before; or none."""
    text = np.asarray(tokens)
    for length in range(min(_LONGEST, len(text) - 1), 0, -1):
        earlier = np.lib.stride_tricks.sliding_window_view(text[:-1], length)
        (places,) = np.nonzero((earlier == text[-length:]).all(-1))
        if len(places):
            after = int(places[-1]) + length
            return [int(token) for token in text[after : after + count]]
    return []
