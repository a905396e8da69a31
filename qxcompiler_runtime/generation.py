"""Write text with a language model, token by token."""

from __future__ import annotations

__all__ = ["Generation", "generate", "generate_batch"]

import math
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from qxcompiler_runtime.chat import render_chat
from qxcompiler_runtime.configuration import context_limit, end_of_sequence
from qxcompiler_runtime.decoder import Decoder
from qxcompiler_runtime.errors import ModelError, UsageError
from qxcompiler_runtime.lookup import look_up
from qxcompiler_runtime.model import ModelFile
from qxcompiler_runtime.sampling import pick
from qxcompiler_runtime.tokens import encode, load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SEEDS = 2**64


@dataclass(frozen=True)
class Generation:
    """What a model wrote, and how fast.

    Attributes:
        text: the new text, without the prompt, and without the stop word that ended it.
        tokens: the new tokens; the last may be the end of sequence, or of a stop word.
        prompt_tokens: length of the prompt in tokens.
        stopped_by: the end-of-sequence token, a stop word, the number of new tokens asked for, or the model's last
            position.
        uses_past: False if the model has no past key values, so that every step runs the whole sequence
            again.
        steps: runs of the model, that of the prompt counted once; of a batch, until its last text ended.
        prefill_seconds: time for the prompt and the first token.
        decode_seconds: time for the other tokens; of a batch, until its last text ended.
        tokens_per_second: rate of the other tokens; None if there are none.
    """

    text: str
    tokens: list[int]
    prompt_tokens: int
    stopped_by: Literal["end_of_sequence", "stop", "max_new_tokens", "context_limit"]
    uses_past: bool
    steps: int
    prefill_seconds: float
    decode_seconds: float
    tokens_per_second: float | None


def generate(
    model_path: str | Path,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    context: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    chat: bool = False,
    lookup: int = 0,
    tokenizer: str | Path | None = None,
    threads: int | None = None,
    on_text: Callable[[str], None] | None = None,
) -> Generation:
    """Continue a prompt.

    Args:
        model_path: the ONNX file of a causal language model.
        prompt: the text to continue; the tokenizer's own leading special tokens are added.
        max_new_tokens: tokens to write at most, at least 1.
        context: tokens that memory is taken for, prompt and text; None is what they can need.
        temperature: 0 takes the most likely token; otherwise tokens are drawn from softmax(logits /
            temperature).
        top_p: draw from the smallest set of tokens that holds this probability (nucleus sampling,
            arXiv:1904.09751).
        seed: of the draws, 0 to 2**64 - 1.
        stop: the text ends before any of these words.
        chat: answer the prompt, which the model's chat template makes a user's words of.
        lookup: tokens at most that are taken from where the text's end occurred before, and checked in one step; the
            text is the same. 0 is off.
        tokenizer: a `tokenizer.json`, or the folder that holds one; by default the model's folder.
        threads: threads of one operator; None lets onnxruntime choose.
        on_text: called with each new piece of text as soon as it is known.

    Raises:
        UsageError: an argument out of range, a prompt without tokens or too long for the model, or a full context.
        ModelError: the model cannot be loaded or run, or is not a causal language model.
        TokenizerError: no tokenizer or chat template was found, or it does not fit the prompt.
    """
    _check(max_new_tokens, temperature, top_p, seed, stop, lookup)
    vocabulary = load_tokenizer(model_path, tokenizer)
    ids = _ids(vocabulary, prompt, Path(model_path).parent if chat else None)
    room = _room(model_path, len(ids), max_new_tokens, context)
    decoder = Decoder(ModelFile(model_path, threads=threads), context=context or len(ids) + room - 1)
    text = _Text(vocabulary, end_of_sequence(Path(model_path).parent), stop, room, on_text)
    draws = np.random.default_rng(seed)

    times = [time.perf_counter()]
    logits = decoder.step([ids])
    steps = 1
    text.take(_next(decoder, logits[0], temperature, top_p, draws))
    times.append(time.perf_counter())
    while not text.is_complete:
        draft = look_up(ids + text.tokens, min(lookup, room - len(text.tokens) - 1)) if lookup else []
        step = [text.tokens[-1], *draft]
        logits = decoder.step_of_each([step])[0] if draft else decoder.step([step])
        steps += 1
        for place, row in enumerate(logits):
            token = _next(decoder, row, temperature, top_p, draws)
            text.take(token)
            if text.is_complete or (place < len(draft) and token != draft[place]):
                break
        if not text.is_complete:
            decoder.rewind(len(draft) - place)
        times.append(time.perf_counter())
    return _generation(text, len(ids), max_new_tokens, context, decoder, steps, times)


def generate_batch(
    model_path: str | Path,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    context: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    chat: bool = False,
    tokenizer: str | Path | None = None,
    threads: int | None = None,
) -> list[Generation]:
    """Continue several prompts side by side, each as `generate` does; shorter ones are padded on the left.

    Args:
        prompts: the texts to continue; the longest counts for all where the context is limited.
        model_path, max_new_tokens, context, temperature, top_p, seed, stop, chat: as for `generate`.
        tokenizer, threads: as for `generate`.

    Raises:
        UsageError, ModelError, TokenizerError: as `generate`; ModelError also where the prompts are of different
            lengths, and the model takes no mask.
    """
    _check(max_new_tokens, temperature, top_p, seed, stop, 0)
    if not prompts:
        raise UsageError("prompts", "there are none", "give one at least")
    vocabulary, folder = load_tokenizer(model_path, tokenizer), Path(model_path).parent
    rows = [_ids(vocabulary, prompt, folder if chat else None) for prompt in prompts]
    width = max(map(len, rows))
    room = _room(model_path, width, max_new_tokens, context)
    padding = [width - len(row) for row in rows]
    model = ModelFile(model_path, threads=threads)
    decoder = Decoder(model, context=context or width + room - 1, padding=padding)
    end = end_of_sequence(folder)
    texts = [_Text(vocabulary, end, stop, room, None) for _ in rows]
    draws = [np.random.default_rng(seed) for _ in rows]

    times = [time.perf_counter()]
    step = [[0] * missing + row for missing, row in zip(padding, rows, strict=True)]
    while not all(text.is_complete for text in texts):
        for text, row_logits, row_draws in zip(texts, decoder.step(step), draws, strict=True):
            if not text.is_complete:
                text.take(_next(decoder, row_logits, temperature, top_p, row_draws))
        times.append(time.perf_counter())
        step = [text.tokens[-1:] for text in texts]
    return [
        _generation(text, len(row), max_new_tokens, context, decoder, len(times) - 1, times)
        for text, row in zip(texts, rows, strict=True)
    ]


class _Text:
    """What a model has written.

    Attributes:
        tokens: the new ones.
        text: as far as it was needed; the whole, once it is complete.
        stopped_by: the end of sequence or a stop word; None where there is no more room, and before.
        is_complete: whether nothing follows.
    """

    def __init__(
        self,
        vocabulary: Tokenizer,
        end: Set[int],
        stop: Sequence[str],
        room: int,
        on_text: Callable[[str], None] | None,
    ) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.stopped_by: Literal["end_of_sequence", "stop"] | None = None
        self.is_complete = False
        self._vocabulary, self._end, self._stop, self._room, self._on_text = vocabulary, end, stop, room, on_text
        self._shown = 0

    def take(self, token: int) -> None:
        """Go on with a token."""
        self.tokens.append(token)
        if token in self._end:
            self.stopped_by = "end_of_sequence"
        if self._stop or self._on_text or token in self._end or len(self.tokens) == self._room:
            self.text = self._vocabulary.decode(self.tokens)
        places = [place for word in self._stop if (place := self.text.find(word)) >= 0]
        if places:
            self.text, self.stopped_by = self.text[: min(places)], "stop"
        self.is_complete = self.stopped_by is not None or len(self.tokens) == self._room
        end = len(self.text) if self.is_complete else self._settled()
        if self._on_text and end > self._shown:
            self._on_text(self.text[self._shown : end])
            self._shown = end

    def _settled(self) -> int:
        """How many characters stay, whatever follows."""
        # A character whose bytes are not complete decodes to U+FFFD: wait for the rest.
        if self.text.endswith("\N{REPLACEMENT CHARACTER}"):
            return self._shown
        begun = [size for word in self._stop for size in range(1, len(word)) if self.text.endswith(word[:size])]
        return len(self.text) - max(begun, default=0)


def _check(max_new_tokens: int, temperature: float, top_p: float, seed: int, stop: Sequence[str], lookup: int) -> None:
    if max_new_tokens < 1 or not 0 <= temperature < math.inf or not 0 < top_p <= 1:
        raise UsageError(
            "generate",
            f"max_new_tokens {max_new_tokens}, temperature {temperature}, top_p {top_p}",
            "give max_new_tokens of at least 1, a finite temperature of at least 0, and top_p above 0 and at most 1",
        )
    if not 0 <= seed < _SEEDS:
        raise UsageError("seed", f"{seed} is out of range", f"give one from 0 to {_SEEDS - 1}")
    if "" in stop:
        raise UsageError("--stop", "is empty", "give a text to stop at")
    if lookup < 0 or (lookup and temperature):
        raise UsageError("--lookup", f"{lookup} at temperature {temperature}", "give 0 or more, and --temperature 0")


def _ids(vocabulary: Tokenizer, prompt: str, folder: Path | None) -> list[int]:
    """The tokens of a prompt; of a user's words, if the folder of a chat template is given."""
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise UsageError("prompt", "is not valid UTF-8", "give a valid text")
    text = prompt if folder is None else render_chat(folder, prompt)
    ids: list[int] = encode(vocabulary, text, "prompt", add_special_tokens=folder is None).ids
    if not ids:
        raise UsageError("prompt", "has 0 tokens", "give one of 1 token at least")
    return ids


def _room(model_path: str | Path, prompt_tokens: int, max_new_tokens: int, context: int | None) -> int:
    """How many tokens can be written: the last of them is not read again."""
    limit = context_limit(model_path)
    if context is not None and (context < 1 or (limit is not None and context > limit)):
        most = "any number" if limit is None else f"the model's {limit}"
        raise UsageError("--context", f"{context} is out of range", f"give one from 1 to {most}")
    most_tokens = limit if context is None else context
    if most_tokens is None:
        return max_new_tokens
    if prompt_tokens > most_tokens:
        raise UsageError("prompt", f"has {prompt_tokens} tokens", f"give one of 1 to {most_tokens}")
    return min(max_new_tokens, most_tokens - prompt_tokens + 1)


def _next(
    decoder: Decoder, logits: npt.NDArray[np.float32], temperature: float, top_p: float, draws: np.random.Generator
) -> int:
    if not np.isfinite(logits.max()):  # of NaN and others, the largest is NaN
        raise ModelError(decoder.model.path, "logits hold NaN, or nothing finite", "compile again with more bits")
    return pick(logits, temperature, top_p, draws)


def _generation(
    text: _Text,
    prompt_tokens: int,
    max_new_tokens: int,
    context: int | None,
    decoder: Decoder,
    steps: int,
    times: Sequence[float],
) -> Generation:
    is_full = text.stopped_by is None and len(text.tokens) < max_new_tokens
    if is_full and context is not None:
        problem = f"{context} tokens are full after {len(text.tokens)} new ones"
        raise UsageError("--context", problem, "give a larger one, or a smaller --max-new-tokens")
    decode_seconds = times[-1] - times[1]
    return Generation(
        text=text.text,
        tokens=text.tokens,
        prompt_tokens=prompt_tokens,
        stopped_by=text.stopped_by or ("context_limit" if is_full else "max_new_tokens"),
        uses_past=decoder.uses_past,
        steps=steps,
        prefill_seconds=times[1] - times[0],
        decode_seconds=decode_seconds,
        tokens_per_second=(len(text.tokens) - 1) / decode_seconds if len(text.tokens) > 1 else None,
    )
