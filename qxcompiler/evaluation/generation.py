"""Write text with a language model, token by token, keeping the keys and values of the past."""

from __future__ import annotations

__all__ = ["Decoder", "Generation", "end_of_sequence", "generate"]

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from onnxruntime import OrtValue
from pydantic import BaseModel

from qxcompiler.calibration.samples import context_limit, encode, load_tokenizer, supply_missing
from qxcompiler.errors import ModelError, UsageError
from qxcompiler.evaluation.language import is_language_model
from qxcompiler.evaluation.running import Runner
from qxcompiler.graph.caches import SHARED_CACHE, is_past, is_present, past_of_present

_LEAST_ROOM = 256  # tokens
_SEEDS = 2**64  # what torch's generator takes


class Generation(BaseModel):
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
        CalibrationError: no tokenizer was found, or the model has an input that cannot be supplied.
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
    decoder = Decoder(Runner(model_path, threads=threads))
    end = end_of_sequence(Path(model_path).parent)
    draws = np.random.default_rng(seed)

    tokens: list[int] = []
    text = ""
    times = [time.perf_counter()]
    step = prompt_ids
    while len(tokens) < room and not (tokens and tokens[-1] in end):
        (logits,) = decoder.step([step]).numpy()
        if not np.isfinite(logits.max()):  # of NaN and others, the largest is NaN
            raise ModelError(model_path, "logits hold NaN, or nothing finite", "compile again with more bits")
        tokens.append(_pick(logits, temperature, top_p, draws))
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


class Decoder:
    """A language model with its past, which stays inside onnxruntime between steps.

    A model that can writes keys and values where the past is (`graph/caches.py`); room for more of them is doubled
    when it is full.
    """

    def __init__(self, model: Runner) -> None:
        if not is_language_model(model):
            raise ModelError(model.path, "does not map token ids to logits", "give a causal language model")
        self.model = model
        self.ids_name = next(spec.name for spec in model.inputs if spec.name.endswith("input_ids"))
        self.past_of = _past_of_present(model)
        self.uses_past = bool(self.past_of)
        self.is_in_place = SHARED_CACHE in model.session.get_modelmeta().custom_metadata_map
        self.room = 0
        self.past: dict[str, OrtValue] = {}
        self.seen: npt.NDArray[Any] | None = None

    def step(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits [batch, vocabulary] after the tokens seen so far and these [batch, length]."""
        given = np.asarray(ids, self._dtype())
        self.seen = given if self.seen is None else np.concatenate([self.seen, given], 1)
        fresh = given if self.uses_past else self.seen
        past_length = self.seen.shape[1] - fresh.shape[1]
        if self.is_in_place:
            self._make_room(*self.seen.shape)
        specs = [spec for spec in self.model.inputs if spec.name not in self.past]
        sample = supply_missing({self.ids_name: fresh}, specs, past_length=past_length, subject=self.model.path)
        feed = {name: OrtValue.ortvalue_from_numpy(value) for name, value in sample.items()} | self.past
        binding = self.model.session.io_binding()
        for name, value in feed.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits")
        for present, past in self.past_of.items():
            if self.is_in_place:
                binding.bind_ortvalue_output(present, self.past[past])
            else:
                binding.bind_output(present)
        try:
            self.model.session.run_with_iobinding(binding)
        except Exception as error:
            raise self.model.failure(error) from error
        logits, *presents = binding.get_outputs()
        if not self.is_in_place:
            self.past = dict(zip(self.past_of.values(), presents, strict=True))
        return torch.from_numpy(logits.numpy()[:, -1].astype(np.float32))

    def _make_room(self, batch: int, tokens: int) -> None:
        """Memory for so many tokens' keys and values at least, with those that are there."""
        if tokens <= self.room:
            return
        kept, self.room = self.room, max(_LEAST_ROOM, 2 * tokens)
        for spec in self.model.inputs:
            if is_past(spec.name) and spec.shape is not None:
                heads, size = (each for each in spec.shape[1::2] if isinstance(each, int))
                memory = np.zeros((batch, heads, self.room, size), spec.dtype)
                if spec.name in self.past:
                    memory[:, :, :kept] = self.past[spec.name].numpy()
                self.past[spec.name] = OrtValue.ortvalue_from_numpy(memory)

    def _dtype(self) -> npt.DTypeLike:
        return next(spec.dtype for spec in self.model.inputs if spec.name == self.ids_name)


def _past_of_present(model: Runner) -> dict[str, str]:
    """The past input that each present output becomes."""
    pasts = [spec.name for spec in model.inputs if is_past(spec.name)]
    presents = [name for name in model.outputs if is_present(name)]
    try:
        return past_of_present(pasts, presents)
    except ValueError as error:
        raise ModelError(
            model.path,
            f"has {len(pasts)} past inputs but {len(presents)} present outputs",
            "export the model with past key values",
        ) from error


def _pick(logits: npt.NDArray[np.float32], temperature: float, top_p: float, draws: np.random.Generator) -> int:
    """The next token: the most likely, or drawn from the nucleus.

    All in NumPy: PyTorch's threads would go on to spin beside those of onnxruntime.
    """
    if temperature == 0:
        return int(logits.argmax())
    # With the largest at 0, and in float64, no temperature overflows but to -inf.
    with np.errstate(over="ignore"):
        weights = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    tokens = np.argsort(-weights, kind="stable") if top_p < 1 else np.arange(len(weights))
    sums = weights[tokens].cumsum()
    nucleus = int(np.searchsorted(sums - weights[tokens], top_p * sums[-1])) if top_p < 1 else len(sums)
    sums = sums[: max(nucleus, 1)]
    return int(tokens[min(np.searchsorted(sums, draws.random() * sums[-1], side="right"), len(sums) - 1)])


def end_of_sequence(folder: Path) -> set[int]:
    """The tokens that end a text, by the generation settings or the configuration beside the model."""
    for name in ("generation_config.json", "config.json"):
        try:
            settings: Any = json.loads((folder / name).read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        end = settings.get("eos_token_id") if isinstance(settings, dict) else None
        if end is None:
            continue
        tokens = end if isinstance(end, list) else [end]
        if not all(type(token) is int for token in tokens):
            problem = f"eos_token_id is {str(end)[:100]}, not a token or a list of tokens"
            raise UsageError(folder / name, problem, "correct the file")
        return set(tokens)
    return set()
