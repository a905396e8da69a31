"""Write text with a language model, token by token."""

from __future__ import annotations

__all__ = ["Generation", "generate"]

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from qxcompiler_runtime.configuration import context_limit, end_of_sequence
from qxcompiler_runtime.decoder import Decoder
from qxcompiler_runtime.errors import ModelError, UsageError
from qxcompiler_runtime.model import ModelFile
from qxcompiler_runtime.sampling import pick
from qxcompiler_runtime.tokens import encode, load_tokenizer

_SEEDS = 2**64


@dataclass(frozen=True)
class Generation:
    """What a model wrote, and how fast.

    Attributes:
        text: the new text, without the prompt.
        tokens: the new tokens; the last may be the end of sequence.
        prompt_tokens: length of the prompt in tokens.
        stopped_by: the end-of-sequence token, the number of new tokens asked for, or the model's last
            position.
        uses_past: False if the model has no past key values, so that every step runs the whole sequence
            again.
        prefill_seconds: time for the prompt and the first token.
        decode_seconds: time for the other tokens.
        tokens_per_second: rate of the other tokens; None if there are none.
    """

    text: str
    tokens: list[int]
    prompt_tokens: int
    stopped_by: Literal["end_of_sequence", "max_new_tokens", "context_limit"]
    uses_past: bool
    prefill_seconds: float
    decode_seconds: float
    tokens_per_second: float | None


def generate(
    model_path: str | Path,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    tokenizer: str | Path | None = None,
    threads: int | None = None,
    on_text: Callable[[str], None] | None = None,
) -> Generation:
    """Continue a prompt.

    Args:
        model_path: the ONNX file of a causal language model.
        prompt: the text to continue; the tokenizer's own leading special tokens are added, no chat template.
        max_new_tokens: tokens to write at most, at least 1.
        temperature: 0 takes the most likely token; otherwise tokens are drawn from softmax(logits /
            temperature).
        top_p: draw from the smallest set of tokens that holds this probability (nucleus sampling,
            arXiv:1904.09751).
        seed: of the draws, 0 to 2**64 - 1.
        tokenizer: a `tokenizer.json`, or the folder that holds one; by default the model's folder.
        threads: threads of one operator; None lets onnxruntime choose.
        on_text: called with each new piece of text as soon as it is known.

    Raises:
        UsageError: an argument out of range, or a prompt without tokens or too long for the model.
        ModelError: the model cannot be loaded or run, or is not a causal language model.
        TokenizerError: no tokenizer was found, or it has no token for a part of the prompt.
    """
    if max_new_tokens < 1 or not 0 <= temperature < math.inf or not 0 < top_p <= 1:
        raise UsageError(
            "generate",
            f"max_new_tokens {max_new_tokens}, temperature {temperature}, top_p {top_p}",
            "give max_new_tokens of at least 1, a finite temperature of at least 0, and top_p above 0 and at most 1",
        )
    if not 0 <= seed < _SEEDS:
        raise UsageError("seed", f"{seed} is out of range", f"give one from 0 to {_SEEDS - 1}")
    vocabulary = load_tokenizer(model_path, tokenizer)
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise UsageError("prompt", "is not valid UTF-8", "give a valid text")
    prompt_ids: list[int] = encode(vocabulary, prompt, "prompt").ids
    limit = context_limit(model_path)
    if not prompt_ids or (limit is not None and len(prompt_ids) > limit):
        raise UsageError(
            "prompt",
            f"has {len(prompt_ids)} tokens",
            f"give one of 1 to {'any number' if limit is None else limit}",
        )
    room = max_new_tokens if limit is None else min(max_new_tokens, limit - len(prompt_ids) + 1)
    decoder = Decoder(ModelFile(model_path, threads=threads))
    end = end_of_sequence(Path(model_path).parent)
    draws = np.random.default_rng(seed)

    tokens: list[int] = []
    text = ""
    times = [time.perf_counter()]
    step = prompt_ids
    while len(tokens) < room and not (tokens and tokens[-1] in end):
        (logits,) = decoder.step([step])
        if not np.isfinite(logits.max()):  # of NaN and others, the largest is NaN
            raise ModelError(model_path, "logits hold NaN, or nothing finite", "compile again with more bits")
        tokens.append(pick(logits, temperature, top_p, draws))
        times.append(time.perf_counter())
        step = tokens[-1:]
        written = vocabulary.decode(tokens)
        # A character whose bytes are not complete decodes to U+FFFD: wait for the rest.
        if on_text is not None and not written.endswith("\N{REPLACEMENT CHARACTER}"):
            on_text(written.removeprefix(text))
            text = written
    if on_text is not None and (rest := vocabulary.decode(tokens).removeprefix(text)):
        on_text(rest)
    decode_seconds = times[-1] - times[1]
    return Generation(
        text=vocabulary.decode(tokens),
        tokens=tokens,
        prompt_tokens=len(prompt_ids),
        stopped_by="end_of_sequence"
        if tokens[-1] in end
        else "max_new_tokens"
        if len(tokens) == max_new_tokens
        else "context_limit",
        uses_past=decoder.uses_past,
        prefill_seconds=times[1] - times[0],
        decode_seconds=decode_seconds,
        tokens_per_second=(len(tokens) - 1) / decode_seconds if len(tokens) > 1 else None,
    )
