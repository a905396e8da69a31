"""A language model that is run step by step, keeping the keys and values of the past."""

from __future__ import annotations

__all__ = ["Decoder", "is_language_model"]

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxruntime import IOBinding, OrtValue

from qxcompiler_runtime.caches import LOGITS, LOGITS_FROM, SHARED_CACHE, is_past, is_present, past_of_present
from qxcompiler_runtime.errors import ModelError, UsageError
from qxcompiler_runtime.inputs import InputSpec, derive, holds_past
from qxcompiler_runtime.model import Model

_LEAST_ROOM = 256  # tokens
_CHUNK = 512  # tokens at once: logits of a whole long prompt would take more memory than the model


def is_language_model(model: Model) -> bool:
    """Whether the model maps token ids to logits at every position."""
    return model.outputs.get("logits") == 3 and any(spec.name.endswith("input_ids") for spec in model.inputs)


class Decoder:
    """A language model with its past, which stays inside onnxruntime between steps.

    A model that can writes keys and values where the past is (`caches.py`), in memory that is taken once.

    Args:
        model: from token ids to logits.
        context: how many tokens it may see; None for any number, with room for them doubled when it is full.
        padding: how many tokens of each row, at its beginning, only make it as long as the others.

    Raises:
        ModelError: the model is no language model, or takes no mask to hide the padding with.
    """

    def __init__(self, model: Model, *, context: int | None = None, padding: Sequence[int] = ()) -> None:
        if not is_language_model(model):
            raise ModelError(model.path, "does not map token ids to logits", "give a causal language model")
        if any(padding) and not any(spec.name.endswith("attention_mask") for spec in model.inputs):
            raise ModelError(model.path, "takes no attention_mask", "give one prompt, or prompts of equal length")
        self.model = model
        self.context = context
        self.padding = np.asarray(padding, np.int64)
        self.ids = next(spec for spec in model.inputs if spec.name.endswith("input_ids"))
        self.past_of = _past_of_present(model)
        self.uses_past = bool(self.past_of)
        self.is_in_place = SHARED_CACHE in model.session.get_modelmeta().custom_metadata_map
        optional = model.session.get_overridable_initializers()
        self.chooses_logits = any(value.name == LOGITS_FROM for value in optional)
        self.room = 0
        self.past: dict[str, OrtValue] = {}
        self.seen: npt.NDArray[Any] | None = None
        self._binding: IOBinding | None = None  # of memory that stays

    def step(self, ids: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Logits [batch, vocabulary] after the tokens seen so far and these [batch, length].

        Raises:
            UsageError: they are more than the context.
            ModelError: onnxruntime could not run the model.
        """
        given = np.asarray(ids, self.ids.dtype)
        chunk = _CHUNK if self.uses_past else given.shape[1]
        for start in range(0, given.shape[1], chunk):
            logits = self._run(given[:, start : start + chunk], logits_from=-1)
        return logits[:, -1].astype(np.float32)

    def step_of_each(self, ids: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Logits [batch, length, vocabulary] after each of some tokens [batch, length]; raises as `step` does."""
        given = np.asarray(ids, self.ids.dtype)
        return self._run(given, logits_from=0)[:, -given.shape[1] :].astype(np.float32)

    def rewind(self, tokens: int) -> None:
        """Forget the last tokens.

        Raises:
            ModelError: the model keeps something else than keys and values of each token.
        """
        if tokens == 0 or self.seen is None:
            return
        before = self.seen.shape[1]
        self.seen = self.seen[:, :-tokens]
        if self.is_in_place:  # what the mask does not reach is written anew
            return
        for spec in self.model.inputs:
            if spec.name in self.past:
                kept = self.past[spec.name].numpy()
                axes = [axis for axis, size in enumerate(spec.shape or ()) if axis and not isinstance(size, int)]
                if len(axes) != 1 or kept.shape[axes[0]] != before:
                    raise ModelError(self.model.path, f"keeps {spec}, which cannot be shortened", "do without --lookup")
                shorter = np.take(kept, range(before - tokens), axis=axes[0])
                self.past[spec.name] = OrtValue.ortvalue_from_numpy(shorter)

    def _run(self, given: npt.NDArray[Any], *, logits_from: int) -> npt.NDArray[Any]:
        """Logits of these tokens from one on; of all, where the model keeps no past or cannot choose."""
        seen = given if self.seen is None else np.concatenate([self.seen, given], 1)
        if self.context is not None and seen.shape[1] > self.context:
            problem = f"is full: {seen.shape[1]} tokens are more than its {self.context}"
            raise UsageError("the context", problem, "give a larger --context, or fewer tokens")
        fresh = given if self.uses_past else seen
        past_length = seen.shape[1] - fresh.shape[1]
        if self.is_in_place:
            self._make_room(*seen.shape)
        binding = self._binding if self._binding is not None else self._bound_to_past()
        for name, value in self._given(fresh, past_length):
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(value))
        if self.chooses_logits:
            binding.bind_ortvalue_input(LOGITS_FROM, OrtValue.ortvalue_from_numpy(np.array([logits_from])))
        binding.bind_output(LOGITS)  # in new memory each time: their number differs
        try:
            self.model.session.run_with_iobinding(binding)
        except Exception as error:
            raise self.model.failure(error) from error
        if self.is_in_place:
            logits = binding.get_outputs_as_ortvaluevector()[0]
        else:
            logits, *presents = binding.get_outputs()
            self.past = dict(zip(self.past_of.values(), presents, strict=True))
        self.seen = seen
        found: npt.NDArray[Any] = logits.numpy()
        return found

    def _bound_to_past(self) -> IOBinding:
        binding = self.model.session.io_binding()
        binding.bind_output(LOGITS)  # the first
        for name, value in self.past.items():
            binding.bind_ortvalue_input(name, value)
        for present, past in self.past_of.items():
            if self.is_in_place:
                binding.bind_ortvalue_output(present, self.past[past])
            else:
                binding.bind_output(present)
        return binding

    def _given(self, fresh: npt.NDArray[Any], past_length: int) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """The inputs that are not kept from the step before."""
        sample = {self.ids.name: fresh}
        for spec in self.model.inputs:
            if spec.name in self.past:
                continue
            value = self._unpadded(spec, past_length + fresh.shape[1], fresh.shape[1]) if self.padding.any() else None
            if value is None:
                value = sample.get(spec.name)
            if value is None:
                value = derive(spec, sample, past_length)
            if value is None:
                problem = f"takes {spec}, which does not follow from token ids"
                raise ModelError(self.model.path, problem, "give a causal language model")
            yield spec.name, value

    def _unpadded(self, spec: InputSpec, tokens: int, fresh: int) -> npt.NDArray[Any] | None:
        """The mask or the positions [batch, tokens] of rows that begin after their padding."""
        positions = np.arange(tokens) - self.padding[:, None]
        if spec.name.endswith("attention_mask"):
            return np.asarray(positions >= 0, spec.dtype)
        if spec.name.endswith("position_ids"):
            return np.asarray(np.maximum(positions[:, -fresh:], 0), spec.dtype)
        return None

    def _make_room(self, batch: int, tokens: int) -> None:
        """Memory for so many tokens' keys and values at least, with those that are there."""
        if tokens <= self.room:
            return
        self.room = self.context or max(_LEAST_ROOM, 2 * tokens)
        for spec in filter(holds_past, self.model.inputs):
            _, *sizes = spec.shape or ()
            memory = np.zeros([batch, *(size if isinstance(size, int) else self.room for size in sizes)], spec.dtype)
            if spec.name in self.past:
                kept = self.past[spec.name].numpy()
                memory[tuple(map(slice, kept.shape))] = kept
            self.past[spec.name] = OrtValue.ortvalue_from_numpy(memory)
        self._binding = self._bound_to_past()  # kept: binding the values of every layer anew costs time


def _past_of_present(model: Model) -> dict[str, str]:
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
