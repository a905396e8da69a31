"""How fast a language model reads a prompt and writes tokens on this machine."""

from __future__ import annotations

__all__ = ["Rate", "Rates", "bench"]

import os
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qxcompiler_runtime.configuration import context_limit
from qxcompiler_runtime.decoder import Decoder
from qxcompiler_runtime.errors import UsageError
from qxcompiler_runtime.model import ModelFile


@dataclass(frozen=True)
class Rate:
    """Rates with so many threads, the medians of several runs.

    Attributes:
        threads: of one operator.
        first_token_seconds: from the prompt to the first token's logits.
        prefill_tokens_per_second: of the prompt.
        decode_tokens_per_second: of the tokens after it, one by one.
    """

    threads: int
    first_token_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float


@dataclass(frozen=True)
class Rates:
    """What `bench` measured.

    Attributes:
        prompt_tokens: length of the prompt.
        new_tokens: tokens after it.
        repetitions: runs that each figure is a median of.
        rates: by number of threads.
        peak_memory_bytes: the most that the process had in memory, Python and its libraries included.
    """

    prompt_tokens: int
    new_tokens: int
    repetitions: int
    rates: list[Rate]
    peak_memory_bytes: int


def bench(
    model_path: str | Path,
    *,
    prompt_tokens: int = 512,
    new_tokens: int = 64,
    repetitions: int = 3,
    threads: Sequence[int] = (),
) -> Rates:
    """Measure a language model on random tokens, after a run to warm up.

    Args:
        model_path: the ONNX file of a causal language model.
        prompt_tokens: length of the prompt, at least 1.
        new_tokens: tokens after it, at least 1.
        repetitions: how often, at least 1.
        threads: how many threads of one operator; by default one, and as many as the process may use.

    Raises:
        UsageError: a number is out of range, or the model's positions do not reach so far.
        ModelError: the model cannot be loaded or run, or is not a causal language model.
    """
    processors = len(os.sched_getaffinity(0))
    counts = list(threads) or sorted({1, processors})
    if min(prompt_tokens, new_tokens, repetitions, *counts) < 1:
        raise UsageError("bench", "a number below 1", "give numbers of at least 1")
    limit = context_limit(model_path)
    if limit is not None and prompt_tokens + new_tokens > limit:
        problem = f"{prompt_tokens} + {new_tokens} tokens are more than the model's {limit}"
        raise UsageError(model_path, problem, "ask for fewer")
    rates = [_rate(Path(model_path), count, prompt_tokens, new_tokens, repetitions) for count in counts]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Rates(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repetitions=repetitions,
        rates=rates,
        peak_memory_bytes=peak,
    )


def _rate(path: Path, threads: int, prompt_tokens: int, new_tokens: int, repetitions: int) -> Rate:
    model = ModelFile(path, threads=threads)
    vocabulary = Decoder(model).step([[0]]).shape[-1]
    draws = np.random.default_rng(0)
    prefills, decodes = [], []
    for _ in range(repetitions + 1):
        decoder = Decoder(model, context=prompt_tokens + new_tokens)
        tokens = draws.integers(0, vocabulary, prompt_tokens + new_tokens).tolist()
        start = time.perf_counter()
        decoder.step([tokens[:prompt_tokens]])
        first = time.perf_counter()
        for token in tokens[prompt_tokens:]:
            decoder.step([[token]])
        prefills.append(first - start)
        decodes.append(time.perf_counter() - first)
    prefill, decode = statistics.median(prefills[1:]), statistics.median(decodes[1:])
    return Rate(
        threads=threads,
        first_token_seconds=prefill,
        prefill_tokens_per_second=prompt_tokens / prefill,
        decode_tokens_per_second=new_tokens / decode,
    )
