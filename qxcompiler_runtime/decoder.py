"""A language model that is run token by token, keeping the keys and values of the past."""

from __future__ import annotations

__all__ = ["Decoder", "is_language_model"]

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxruntime import OrtValue

from qxcompiler_runtime.caches import SHARED_CACHE, is_past, is_present, past_of_present
from qxcompiler_runtime.errors import ModelError
from qxcompiler_runtime.inputs import derive
from qxcompiler_runtime.model import Model

_LEAST_ROOM = 256  # tokens


def is_language_model(model: Model) -> bool:
    """Whether the model maps token ids to logits at every position."""
    return model.outputs.get("logits") == 3 and any(spec.name.endswith("input_ids") for spec in model.inputs)


class Decoder:
    """A language model with its past, which stays inside onnxruntime between steps.

    A model that can writes keys and values where the past is (`caches.py`); room for more of them is doubled
    when it is full.
    """

    def __init__(self, model: Model) -> None:
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

    def step(self, ids: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Logits [batch, vocabulary] after the tokens seen so far and these [batch, length]."""
        given = np.asarray(ids, self._dtype())
        self.seen = given if self.seen is None else np.concatenate([self.seen, given], 1)
        fresh = given if self.uses_past else self.seen
        past_length = self.seen.shape[1] - fresh.shape[1]
        if self.is_in_place:
            self._make_room(*self.seen.shape)
        given_now = self._given(fresh, past_length)
        feed = {name: OrtValue.ortvalue_from_numpy(value) for name, value in given_now} | self.past
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
        last: npt.NDArray[np.float32] = logits.numpy()[:, -1].astype(np.float32)
        return last

    def _given(self, fresh: npt.NDArray[Any], past_length: int) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """The inputs that are not kept from the step before."""
        sample = {self.ids_name: fresh}
        for spec in self.model.inputs:
            if spec.name in self.past:
                continue
            value = sample.get(spec.name)
            if value is None:
                value = derive(spec, sample, past_length)
            if value is None:
                problem = f"takes {spec}, which does not follow from token ids"
                raise ModelError(self.model.path, problem, "give a causal language model")
            yield spec.name, value

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
