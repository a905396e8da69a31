"""What keys and values that a model keeps are called: `past_key_values.0.key` goes in, `present.0.key` comes out.

These are the names that Hugging Face's exporters give and onnxruntime-genai reads; nothing else here knows them. Beside
them, those of logits, and of our own input that chooses some.
"""

from __future__ import annotations

__all__ = [
    "CACHE_FORMAT",
    "LOGITS",
    "LOGITS_FROM",
    "SHARED_CACHE",
    "is_past",
    "is_past_size",
    "is_present",
    "past_name",
    "past_of_present",
]

from collections.abc import Sequence

LOGITS = "logits"
LOGITS_FROM = "logits_from"  # the first new token that logits are wanted of; an input that may be left out
CACHE_FORMAT = "qxc.cache_format"  # metadata: what they are kept in, where it is a format of `formats/cache.py`
SHARED_CACHE = "qxc.shared_cache"  # metadata of a model that may be given the same memory as past and as present


def is_past(name: str) -> bool:
    """Whether an input is called like what a model wrote before."""
    return name.startswith("past")


def is_present(name: str) -> bool:
    """Whether an output is called like what a model will read again."""
    return name.startswith("present")


def is_past_size(symbol: str) -> bool:
    """Whether a symbolic size is called like the number of tokens that a model has kept."""
    return "past" in symbol.lower()


def past_name(present: str) -> str:
    """The input that an output becomes, in models whose names are the usual ones."""
    return f"past_key_values{present.removeprefix('present')}"


def past_of_present(pasts: Sequence[str], presents: Sequence[str]) -> dict[str, str]:
    """The past input that each present output becomes: by the rest of the name, `0.key`, else by order.

    Raises:
        ValueError: they are not as many.
    """
    by_rest = {_rest(name): name for name in pasts}
    if len(by_rest) == len(pasts) and set(by_rest) == {_rest(name) for name in presents}:
        return {name: by_rest[_rest(name)] for name in presents}
    return dict(zip(presents, pasts, strict=True))


def _rest(name: str) -> str:
    return name.partition(".")[2]
