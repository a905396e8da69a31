"""A model in three files, as exporters write T5, BART or Whisper: what each of them sees when the model writes."""

from __future__ import annotations

__all__ = ["DECODER_WITH_PAST", "ENCODER", "EncoderDecoder", "is_encoder_decoder"]

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qxcompiler.calibration.samples import Sample, supply_missing
from qxcompiler.errors import ModelError
from qxcompiler.evaluation.running import Runner
from qxcompiler_runtime.caches import is_present, past_name
from qxcompiler_runtime.inputs import InputSpec

ENCODER, _DECODER = "encoder_model.onnx", "decoder_model.onnx"
DECODER_WITH_PAST = "decoder_with_past_model.onnx"
_LONGEST = 64  # tokens that the decoder writes for a sample


def is_encoder_decoder(folder: str | Path) -> bool:
    """Whether a folder holds an encoder and a decoder."""
    return (Path(folder) / ENCODER).is_file() and (Path(folder) / _DECODER).is_file()


class EncoderDecoder:
    """Runs the files of an encoder-decoder one after the other.

    Args:
        folder: holds `encoder_model.onnx`, `decoder_model.onnx`, mostly `decoder_with_past_model.onnx`, and
            `config.json` or `generation_config.json`.

    Raises:
        ModelError: a file cannot be loaded, or nothing says with which token a text starts.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._encoder, self._decoder = Runner(self._folder / ENCODER), Runner(self._folder / _DECODER)
        follower = self._folder / DECODER_WITH_PAST
        self._follower = Runner(follower) if follower.is_file() else None
        start = self._setting("decoder_start_token_id", "bos_token_id")
        if not isinstance(start, int):
            problem = "does not say which token a text starts with"
            raise ModelError(self._folder / "config.json", problem, "add its decoder_start_token_id")
        ends = self._setting("eos_token_id")
        self._start, self._ends = start, set(ends) if isinstance(ends, list) else {ends}

    @property
    def inputs(self) -> list[InputSpec]:
        """What the encoder takes."""
        return self._encoder.inputs

    def feeds(self, sample: Sample) -> dict[str, Sample]:
        """The inputs of each file while the model writes a text for `sample`, the likeliest token each time.

        Args:
            sample: the inputs of the encoder, a batch of one.

        Returns:
            By file: the sample itself; the whole text with the encoder's output; its last token with all that came
            before as the past, if there is a file for that and the text has two tokens.

        Raises:
            ModelError: a file fails to run.
        """
        hidden = self._run(self._encoder, sample)["last_hidden_state"]
        around: Sample = {"encoder_hidden_states": hidden}
        if "attention_mask" in sample:
            around["encoder_attention_mask"] = sample["attention_mask"]
        tokens = [self._start]
        last: Sample | None = None
        for token, step in self._steps(around):
            last = step
            if token in self._ends or len(tokens) == _LONGEST:
                break
            tokens.append(token)
        found = {ENCODER: sample, _DECODER: self._given(self._decoder, tokens, around)}
        if last is not None:
            found[DECODER_WITH_PAST] = last
        return found

    def _steps(self, around: Sample) -> Iterator[tuple[int, Sample | None]]:
        """The tokens that the model writes; what the file with past was fed for each, None for the first."""
        tokens = [self._start]
        outputs = self._run(self._decoder, self._given(self._decoder, tokens, around))
        past: Sample = {}
        feed: Sample | None = None
        while True:
            past |= {past_name(name): y for name, y in outputs.items() if is_present(name)}
            tokens.append(int(outputs["logits"][0, -1].argmax()))
            yield tokens[-1], feed
            if self._follower is None or not past:
                outputs = self._run(self._decoder, self._given(self._decoder, tokens, around))
            else:
                feed = self._given(self._follower, tokens[-1:], around | past, past_length=len(tokens) - 1)
                outputs = self._run(self._follower, feed)

    def _given(self, runner: Runner, tokens: list[int], values: Sample, past_length: int = 0) -> Sample:
        ids = next((spec for spec in runner.inputs if spec.name.endswith("input_ids")), None)
        if ids is None:
            raise ModelError(runner.path, "takes no input_ids", "export the model again")
        given = {ids.name: np.asarray([tokens], ids.dtype)}
        given |= {spec.name: values[spec.name].astype(spec.dtype) for spec in runner.inputs if spec.name in values}
        return supply_missing(given, runner.inputs, past_length=past_length, subject=runner.path)

    def _run(self, runner: Runner, feed: Sample) -> Sample:
        outputs = dict(zip(runner.outputs, runner.run(feed, list(runner.outputs)), strict=True))
        missing = {"last_hidden_state"} if runner is self._encoder else {"logits"}
        if not missing <= outputs.keys():
            raise ModelError(runner.path, f"has no output {missing.pop()}", "export the model again")
        return outputs

    def _setting(self, *names: str) -> Any:
        for file in ("generation_config.json", "config.json"):
            try:
                settings = json.loads((self._folder / file).read_bytes())
            except (OSError, ValueError, RecursionError):
                continue
            for name in names:
                if isinstance(settings, dict) and settings.get(name) is not None:
                    return settings[name]
        return None
