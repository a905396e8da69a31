"""Check an exported model against the one it came from."""

from __future__ import annotations

__all__ = ["verify"]

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qxcompiler.calibration.samples import InputSpec, Sample, supply_missing
from qxcompiler.errors import ExportError
from qxcompiler.evaluation.running import Runner
from qxcompiler.models.recipes import Recipe

_TOLERANCE = 1e-3  # relative L2 error; float32 summed in another order stays far below
_ENCODER, _DECODER = "encoder_model.onnx", "decoder_model.onnx"
_DECODER_WITH_PAST = "decoder_with_past_model.onnx"

Forward = Callable[..., Any]


@torch.no_grad()
def verify(folder: Path, model: Any, recipe: Recipe, source: object) -> None:
    """Run every ONNX file in a folder on random inputs, and the model itself on the same.

    Where there are past key values, one more token is run on top of them.

    Args:
        folder: holds `model.onnx`, or an encoder and a decoder with and without past.
        model: the model of transformers that was exported.
        recipe: how, with shapes of examples.
        source: what an error is about.

    Raises:
        ExportError: an output is off by more than 1e-3 (relative L2 error).
        ModelError: onnxruntime cannot load or run a file.
    """
    example = _Example(model.config, recipe)
    if (folder / _ENCODER).is_file():
        encoder = Runner(folder / _ENCODER)
        sample = example.sample(encoder.inputs)
        outputs = _compare(encoder, sample, model.get_encoder()(**_tensors(sample)), source)
        hidden = outputs["last_hidden_state"]

        def decode(input_ids: torch.Tensor, **_: torch.Tensor) -> Any:
            return model(decoder_input_ids=input_ids, encoder_outputs=(torch.from_numpy(hidden),))

        decoder = Runner(folder / _DECODER)
        follower = Runner(folder / _DECODER_WITH_PAST) if (folder / _DECODER_WITH_PAST).is_file() else None
        sample = example.sample(decoder.inputs, {"encoder_hidden_states": hidden})
        _verify_decoder(decoder, follower, sample, decode, source)
    else:
        runner = Runner(folder / "model.onnx")
        has_past = any(spec.name.startswith("past") for spec in runner.inputs)
        _verify_decoder(runner, runner if has_past else None, example.sample(runner.inputs), model, source)


def _verify_decoder(first: Runner, follower: Runner | None, sample: Sample, forward: Forward, source: object) -> None:
    """Compare the first run; then, with its present as the past, a run of one more token."""
    outputs = _compare(first, sample, forward(**_tensors(sample)), source)
    if follower is None:
        return
    ids = np.concatenate([sample["input_ids"], sample["input_ids"][:, :1]], axis=1)
    given = {name.replace("present", "past_key_values"): y for name, y in outputs.items() if "present" in name}
    given["input_ids"] = ids[:, -1:]
    step = supply_missing(given, follower.inputs, past_length=ids.shape[1] - 1)
    expected = forward(input_ids=torch.from_numpy(ids)).logits[:, -1:]
    _compare(follower, step, {"logits": expected}, source)


def _compare(runner: Runner, sample: Sample, expected: Any, source: object) -> Sample:
    """All outputs of the ONNX model, once those that the other model has too were found equal."""
    outputs = dict(zip(runner.outputs, runner.run(sample, list(runner.outputs)), strict=True))
    common = [name for name in outputs if isinstance(expected.get(name), torch.Tensor)]
    if not common:
        raise ExportError(source, f"{runner.path.name} has none of the model's outputs", "report this")
    for name in common:
        y, y_ref = torch.from_numpy(outputs[name]), expected[name]
        error = (y - y_ref).norm() / y_ref.norm() if y.shape == y_ref.shape else torch.tensor(torch.inf)
        if not error <= _TOLERANCE:  # NaN is an error, too
            raise ExportError(
                source,
                f"output {name} of {runner.path.name} is off by {error:.2g} (relative L2 error)",
                "this model cannot be exported faithfully",
            )
    return outputs


class _Example:
    """Random inputs by the recipe and the model's configuration."""

    def __init__(self, config: Any, recipe: Recipe) -> None:
        # Models of several parts keep the sizes in the parts' configurations.
        self.configs = [config, *(getattr(config, part, None) for part in ("text_config", "vision_config"))]
        self.shapes = recipe.example
        self.draws = np.random.default_rng(0)

    def sample(self, inputs: list[InputSpec], given: Sample | None = None) -> Sample:
        drawn = {spec.name: self._draw(spec) for spec in inputs if spec.name in self.shapes}
        return supply_missing({**drawn, **(given or {})}, inputs)

    def _draw(self, spec: InputSpec) -> Any:
        shape = [1, *(self._size(d) for d in self.shapes[spec.name])]
        if np.issubdtype(spec.dtype, np.integer):
            return self.draws.integers(self._size("vocab_size"), size=shape, dtype=spec.dtype)
        return self.draws.standard_normal(shape).astype(spec.dtype)

    def _size(self, dim: int | str) -> int:
        if isinstance(dim, int):
            return dim
        return next(int(size) for config in self.configs if (size := getattr(config, dim, None)) is not None)


def _tensors(sample: Sample) -> dict[str, torch.Tensor]:
    """What the model of transformers takes: everything but the empty past."""
    return {name: torch.from_numpy(value) for name, value in sample.items() if not name.startswith("past")}
