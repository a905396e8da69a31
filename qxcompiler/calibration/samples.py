"""Samples in: text or named arrays become the inputs of a model, one run at a time.

Text is tokenised once as a whole, without special tokens, and cut into windows spaced evenly over it: the
usual protocol for the perplexity of language models, which adds no leading `<s>` to a window. Windows do not
overlap: short text makes fewer. Where a tokenizer brackets a text on both sides (`[CLS]` ... `[SEP]`, as for
encoders), every window is bracketed so; the brackets count towards its length. How arrays are cut is said in
`qxcompiler.calibration.arrays`.
"""

from __future__ import annotations

__all__ = [
    "Sample",
    "default_length",
    "input_specs",
    "load_mixed",
    "load_samples",
    "supply_missing",
]

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from tokenizers import Tokenizer

from qxcompiler.calibration.arrays import batch_axis, fit, read_npz, split
from qxcompiler.errors import CalibrationError
from qxcompiler_runtime.configuration import context_limit
from qxcompiler_runtime.inputs import InputSpec, declared_shape, derive, holds_past
from qxcompiler_runtime.tokens import encode, load_tokenizer

_LENGTH = 512  # tokens a sample, unless the model takes fewer or is told otherwise

Sample: TypeAlias = dict[str, npt.NDArray[Any]]


def input_specs(model: ir.Model) -> list[InputSpec]:
    """The inputs of a model that must be fed, that is, those without a default value.

    Args:
        model: a model whose graph inputs have types.

    Returns:
        One `InputSpec` an input, in the graph's order.

    Raises:
        CalibrationError: an input is not a tensor.
    """
    specs, file = [], model.meta.get("path")
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if not isinstance(value.type, ir.TensorType) or value.dtype in (None, ir.DataType.UNDEFINED):
            raise CalibrationError(
                f"input {value.name}",
                f"{value.type} is not a tensor",
                "use a model with tensor inputs",
            )
        shape = None if value.shape is None else declared_shape(value.name or "", value.shape, file)
        specs.append(InputSpec(value.name or "", np.dtype(value.dtype.numpy()), shape))
    return specs


def load_samples(
    source: str | Path | Iterable[Mapping[str, npt.NDArray[Any]]],
    inputs: Sequence[InputSpec],
    model_path: str | Path | None,
    *,
    samples: int,
    length: int | None = None,
    tokenizer: str | Path | None = None,
) -> list[Sample]:
    """Read calibration or evaluation samples.

    `.txt` is one text; `.jsonl` has an object with a string `text` on every line, joined by newlines into one
    text. Either is cut into up to `samples` runs of windows of `length` tokens, spaced evenly over the text, which do
    not overlap. `.npz` has an array for each input, see `qxcompiler.calibration.arrays`; at most `samples` runs are
    taken, spaced evenly. A Python iterable gives the inputs of a run with each element; the first `samples` are taken.
    Attention masks, position ids, token types and an empty past are supplied where there are none.

    Args:
        source: a `.txt`, `.jsonl` or `.npz` file, or an iterable of mappings from inputs to arrays.
        inputs: what the model takes.
        model_path: the ONNX file, beside which `tokenizer.json` and `config.json` lie; None if there is none.
        samples: how many samples at most.
        length: tokens a window, special tokens included; None is 512, or the model's own limit where that is less.
            Without meaning for arrays.
        tokenizer: another `tokenizer.json`, or the folder that holds one.

    Returns:
        At least one sample; in each, every input of the model.

    Raises:
        CalibrationError: the source cannot be read, is too short, or does not fit the model's inputs.
    """
    if samples < 1 or (length is not None and length < 1):
        raise CalibrationError(_source_name(source), f"{samples} samples of length {length}", "give positive numbers")
    loaded: list[Sample]
    if not isinstance(source, (str, Path)):
        loaded = _feeds(source, inputs, samples)
    elif Path(source).suffix == ".npz":
        loaded = split(read_npz(Path(source)), inputs, samples, source)
    elif Path(source).suffix in (".txt", ".jsonl"):
        loaded = _text(Path(source), inputs, model_path, samples, length, tokenizer)
    else:
        kind = Path(source).suffix or "such"
        raise CalibrationError(source, f"cannot read samples from {kind} files", "give .txt, .jsonl or .npz")
    subject = _source_name(source)
    complete = [supply_missing(sample, inputs, subject=subject) for sample in loaded]
    for sample in complete:
        for spec in inputs:
            shape = sample[spec.name].shape
            if not spec.accepts(shape):
                raise CalibrationError(
                    subject,
                    f"a sample has {spec.name} of shape {list(shape)}, but the model takes {spec}",
                    "give samples (or a --length) of the model's fixed size",
                )
    return complete


def load_mixed(
    sources: Sequence[str | Path],
    inputs: Sequence[InputSpec],
    model_path: str | Path | None,
    *,
    samples: int,
    length: int | None = None,
    seed: int,
) -> list[Sample]:
    """Read samples of several files, as many of each, where none is too short.

    Every run of as many samples as there are files has one of each, in random order.

    Args:
        sources: `.txt`, `.jsonl` or `.npz` files.
        inputs, model_path, samples, length: as for `load_samples`; there may be fewer than one more a file.
        seed: of the order.

    Raises:
        CalibrationError: as `load_samples`.
    """
    share = -(-samples // len(sources))
    loaded = [load_samples(source, inputs, model_path, samples=share, length=length) for source in sources]
    if len(loaded) == 1:
        return loaded[0]
    random = np.random.default_rng(seed)
    rounds = itertools.zip_longest(*loaded)
    mixed = [each[place] for each in rounds for place in random.permutation(len(each))]
    return [sample for sample in mixed if sample is not None]


def _source_name(source: object) -> str:
    """What to call a source of samples in a message."""
    return str(source) if isinstance(source, (str, Path)) else "samples"


def default_length(inputs: Sequence[InputSpec], model_path: str | Path | None) -> int:
    """Tokens a window where none were asked for: what the model takes if that is fixed, else 512 or its context."""
    for spec in inputs:
        if spec.name.endswith("input_ids") and spec.shape and isinstance(spec.shape[-1], int):
            return spec.shape[-1]
    return min(_LENGTH, context_limit(model_path) or _LENGTH)


def _feeds(source: Iterable[Mapping[str, npt.NDArray[Any]]], inputs: Sequence[InputSpec], samples: int) -> list[Sample]:
    """The inputs of single runs, as a Python caller gives them."""
    by_name = {spec.name: spec for spec in inputs}
    loaded: list[Sample] = []
    for number, feed in enumerate(itertools.islice(source, samples)):
        subject = f"sample {number}"
        if not isinstance(feed, Mapping):
            raise CalibrationError(subject, f"is a {type(feed).__name__}", "give mappings from inputs to arrays")
        if unknown := [name for name in feed if name not in by_name]:
            names = ", ".join(by_name)
            raise CalibrationError(subject, f"the model has no input {unknown[0]}", f"give arrays for {names}")
        loaded.append({name: fit(name, np.asarray(array), by_name[name], subject) for name, array in feed.items()})
    if not loaded:
        raise CalibrationError("samples", "there are none", "give an iterable of mappings from inputs to arrays")
    return loaded


def _text(
    path: Path,
    inputs: Sequence[InputSpec],
    model_path: str | Path | None,
    samples: int,
    length: int | None,
    tokenizer: str | Path | None,
) -> list[Sample]:
    """The token ids of windows of a text, as many to a run as the model's batch holds."""
    ids = _token_input(path, inputs)
    limit = context_limit(model_path)
    if length is None:
        length = default_length(inputs, model_path)
    elif limit is not None and length > limit:
        raise CalibrationError(
            path, f"samples of {length} tokens, but {model_path} takes at most {limit}", f"give --length {limit}"
        )
    axis = None if ids.shape is not None and len(ids.shape) == 1 else batch_axis(ids, inputs) or 0
    size = ids.shape[axis] if ids.shape is not None and axis is not None else None
    batch = size if isinstance(size, int) and size > 0 else 1
    windows = _windows(path, load_tokenizer(model_path, tokenizer), samples * batch, length)
    if len(windows) < batch:
        problem = f"makes {len(windows)} windows of {length} tokens, but one run of the model takes {batch}"
        raise CalibrationError(path, problem, "give more text or a smaller --length")
    runs = [windows[start : start + batch] for start in range(0, len(windows) - batch + 1, batch)]
    return [{ids.name: (run[0] if axis is None else np.stack(run, axis)).astype(ids.dtype)} for run in runs]


def supply_missing(
    sample: Mapping[str, npt.NDArray[Any]],
    inputs: Sequence[InputSpec],
    *,
    past_length: int = 0,
    subject: object = "samples",
) -> Sample:
    """Add the inputs that follow from the others.

    Args:
        sample: the inputs at hand.
        inputs: all inputs of the model.
        past_length: tokens already held in past key values. Only an empty past (0) can be supplied; with
            another, the past must be at hand.
        subject: what an error is about.

    Returns:
        The sample, in the order of `inputs`, with attention masks of ones, position ids that count up from
        `past_length`, token types of zero, past key values without tokens, and `use_cache_branch` as fits.

    Raises:
        CalibrationError: an input is missing and cannot be derived.
    """
    complete: Sample = {}
    for spec in inputs:
        value = sample.get(spec.name)
        if value is None:
            value = derive(spec, sample, past_length)
        if value is None:
            raise CalibrationError(
                subject,
                f"no value for the model's input {spec}",
                f"give a .npz file with arrays named {', '.join(i.name for i in inputs if not holds_past(i))}",
            )
        complete[spec.name] = value
    return complete


def _token_input(path: Path, inputs: Sequence[InputSpec]) -> InputSpec:
    for spec in inputs:
        if spec.name.endswith("input_ids") and np.issubdtype(spec.dtype, np.integer):
            return spec
    raise CalibrationError(
        path,
        f"is text, but the model takes no token ids, only {'; '.join(map(str, inputs))}",
        "give a .npz file with an array for each of these inputs",
    )


def _windows(path: Path, tokenizer: Tokenizer, samples: int, length: int) -> list[npt.NDArray[np.int64]]:
    """Up to `samples` windows of `length` tokens, spaced evenly over the text without overlapping."""
    prefix, suffix = _brackets(tokenizer, path)
    body = length - len(prefix) - len(suffix)
    tokens = np.asarray(encode(tokenizer, _read_text(path), path, add_special_tokens=False).ids, np.int64)
    if body < 1:
        raise CalibrationError(
            path,
            f"no room for text in {length} tokens",
            f"give a --length over {length - body} (special tokens)",
        )
    if len(tokens) < body:
        raise CalibrationError(
            path,
            f"has {len(tokens)} tokens, but one sample takes {body}",
            "give more text or a smaller --length",
        )
    last = len(tokens) - body
    stride = last // samples
    if stride > body:
        starts = list(range(0, stride * samples, stride))
    else:
        count = min(samples, len(tokens) // body)
        starts = [number * last // max(count - 1, 1) for number in range(count)]
    return [np.concatenate([prefix, tokens[start : start + body], suffix]) for start in starts]


def _brackets(tokenizer: Tokenizer, path: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The special tokens before and after a text, if the tokenizer puts some on both sides; else none."""
    probe = encode(tokenizer, "a", path)
    text = [i for i, special in enumerate(probe.special_tokens_mask) if not special]
    before, after = (probe.ids[: text[0]], probe.ids[text[-1] + 1 :]) if text else ([], [])
    if not (before and after):
        before, after = [], []
    return np.asarray(before, np.int64), np.asarray(after, np.int64)


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")  # a leading byte-order mark is no text
    except OSError as error:
        raise CalibrationError(path, f"cannot be read ({error.strerror})", "give a readable file") from error
    except UnicodeDecodeError as error:
        raise CalibrationError(path, f"is not UTF-8 (byte {error.start})", "give a UTF-8 text") from error
    if path.suffix == ".jsonl":
        text = "\n".join(_documents(path, text))
    if not text.strip():
        raise CalibrationError(path, "is empty", "give a file with text")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise CalibrationError(path, "holds half a surrogate pair", "give a valid text")
    return text


def _documents(path: Path, lines: str) -> Iterator[str]:
    """The `text` of every line of a JSON-lines file."""
    for number, line in enumerate(lines.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CalibrationError(
                path, f"line {number} is not JSON ({error})", "give one JSON object a line"
            ) from error
        if not isinstance(document, dict) or not isinstance(document.get("text"), str):
            raise CalibrationError(path, f"line {number} has no string 'text'", 'give lines like {"text": "..."}')
        yield document["text"]
