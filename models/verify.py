"""Check an exported model against the one it came from."""

from __future__ import annotations

__all__ = ["verify"]

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, TypeAlias

import torch

from qxcompiler.errors import ExportError, ModelError
from qxcompiler.evaluation.running import Runner
from qxcompiler.models.tasks import Part

_TOLERANCE = 1e-3  # relative L2 error; float32 summed in another order stays far below
_SHAPES = {"batch_size": 3, "sequence_length": 11}  # others than those that optimum traces with: they must be free

Tensors: TypeAlias = dict[str, torch.Tensor]


@torch.no_grad()
def verify(folder: Path, parts: Sequence[Part], source: object) -> None:
    """Run every ONNX file of a model on random inputs, and the model itself on the same: all outputs must agree.

    What takes past key values is given some; a decoder that is one file is also run without any.

    Args:
        folder: holds the ONNX files.
        parts: what they were exported from.
        source: what an error is about.

    Raises:
        ExportError: an output is missing, or off by more than 1e-3 (relative L2 error); or a file cannot be run.
        ModelError: onnxruntime cannot load a file.
    """
    with _seeded():
        for part in parts:
            runner = Runner(folder / f"{part.name}.onnx")
            missing = [name for name in part.config.outputs if name not in runner.outputs]
            if missing:
                raise ExportError(source, f"{runner.path.name} has no output {missing[0]}", "report this")
            for feeds, expected in _examples(part, [spec.name for spec in runner.inputs]):
                _compare(runner, feeds, expected, source)


@contextmanager
def _seeded() -> Iterator[None]:
    """The generators that optimum draws examples with."""
    state = random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random.seed(0)
        try:
            yield
        finally:
            random.setstate(state)


def _examples(part: Part, names: list[str]) -> Iterator[tuple[Tensors, Tensors]]:
    """Inputs of the ONNX file, and the outputs that it should give."""
    inputs = part.config.generate_dummy_inputs(framework="pt", **_SHAPES)
    feeds = _feeds(part, inputs, names)
    yield feeds, _outputs(part, inputs)
    if "past_key_values" in inputs and "encoder_outputs" not in inputs:
        del inputs["past_key_values"]
        feeds = _without_past(part, feeds)
        inputs |= {name: value for name, value in feeds.items() if name in inputs}
        yield feeds, _outputs(part, inputs)


def _feeds(part: Part, inputs: dict[str, Any], names: list[str]) -> Tensors:
    """The inputs under their names in the ONNX file; it may lack some that it does not use."""
    config = part.config
    feeds: Tensors = {}
    renamed = config.rename_ambiguous_inputs(dict(inputs))
    for name, value in config.generate_dummy_inputs_for_validation(renamed, names).items():
        if isinstance(value, torch.Tensor):
            feeds[name] = value
        else:
            feeds |= config.flatten_output_collection_property(name, value)
    return feeds


def _without_past(part: Part, feeds: Tensors) -> Tensors:
    past = "past_sequence_length"
    axes = {name: {label: axis for axis, label in by_axis.items()} for name, by_axis in part.config.inputs.items()}
    cut = dict(feeds)
    for name, axis_of in axes.items():
        if past in axis_of:
            cut[name] = feeds[name].narrow(axis_of[past], 0, 0)
        elif (axis := axis_of.get(f"{past} + sequence_length")) is not None:
            length = feeds["input_ids"].shape[1]
            cut[name] = feeds[name].narrow(axis, feeds[name].shape[axis] - length, length)
    return cut


def _outputs(part: Part, inputs: dict[str, Any]) -> Tensors:
    """The original's outputs, under their names in the ONNX file."""
    expected = _flat(part, _run(part, inputs))
    if not expected.keys() >= part.config.outputs.keys():
        # A part that only optimum's patch of the model defines, such as the halves of SAM.
        with part.config.patch_model_for_export(part.module, model_kwargs={}):
            expected = _flat(part, part.module(**inputs))
    return expected


def _run(part: Part, inputs: dict[str, Any]) -> Any:
    from optimum.exporters.onnx.model_patcher import preprocess_encoder_outputs, preprocess_past_key_values

    inputs = dict(part.config.rename_ambiguous_inputs(dict(inputs)))
    for name, convert in (
        ("past_key_values", preprocess_past_key_values),
        ("encoder_outputs", preprocess_encoder_outputs),
    ):
        if name in inputs:
            inputs[name] = convert(inputs[name])
    if "use_cache" in signature(part.module.forward).parameters:
        inputs["use_cache"] = getattr(part.config, "use_past", False)
    return part.module(**inputs)


def _flat(part: Part, outputs: Any) -> Tensors:
    from optimum.exporters.onnx.model_patcher import postprocess_past_key_values

    config = part.config
    flat: Tensors = {}
    for key, value in outputs.items():
        name = config.torch_to_onnx_output_map.get(key, key)
        if key == "past_key_values":
            name, value = "present", postprocess_past_key_values(value, output_names=list(config.outputs))
        if isinstance(value, torch.Tensor):
            flat[name] = value
        elif isinstance(value, (list, tuple)) and value:
            flat |= config.flatten_output_collection_property(name, value)
    return flat


def _compare(runner: Runner, feeds: Tensors, expected: Tensors, source: object) -> None:
    names = list(runner.outputs)
    try:
        outputs = runner.run({spec.name: feeds[spec.name].numpy() for spec in runner.inputs}, names)
    except ModelError as failure:
        raise ExportError(
            source,
            f"{runner.path.name} does not run on inputs of other sizes than it was traced with ({failure.__cause__})",
            "this model cannot be exported faithfully",
        ) from failure
    for name, output in zip(names, outputs, strict=True):
        if name not in expected:
            raise ExportError(source, f"output {name} of {runner.path.name} is none of the model's", "report this")
        error = _relative_error(torch.from_numpy(output), expected[name])
        if not error <= _TOLERANCE:  # NaN is an error, too
            raise ExportError(
                source,
                f"output {name} of {runner.path.name} is off by {error:.2g} (relative L2 error)",
                "this model cannot be exported faithfully",
            )


def _relative_error(y: torch.Tensor, y_ref: torch.Tensor) -> float:
    if y.shape != y_ref.shape:
        return torch.inf
    y, y_ref = y.double(), y_ref.double()
    same = y == y_ref  # infinities among them
    difference = torch.where(same, 0.0, y - y_ref).norm()
    return float(difference / torch.where(same & y.isinf(), 0.0, y_ref).norm()) if difference else 0.0
