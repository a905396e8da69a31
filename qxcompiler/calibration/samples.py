"""Samples in: a file of text or of named arrays becomes the inputs of a model, one batch of one at a time.

Text is tokenised once as a whole, without special tokens, and cut into windows spaced evenly over it: the
usual protocol for the perplexity of language models, which adds no leading `<s>` to a window. Where a
tokenizer brackets a text on both sides (`[CLS]` ... `[SEP]`, as for encoders), every window is bracketed so;
the brackets count towards its length.
"""

from __future__ import annotations

__all__ = [
    "InputSpec",
    "Sample",
    "context_limit",
    "input_specs",
    "is_float",
    "load_samples",
    "load_tokenizer",
    "supply_missing",
]

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes  # noqa: F401  (teaches numpy the names bfloat16 and float8)
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from tokenizers import Tokenizer

from qxcompiler.errors import CalibrationError

Sample: TypeAlias = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: the input's name in the graph.
        dtype: its element type.
        shape: its dimensions: a number where fixed, a name or None where free; None if the rank is unknown.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape can be fed to the input."""
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(
            not isinstance(mine, int) or mine == size for mine, size in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        dims = "any shape" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name} {self.dtype} [{dims}]"


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a type holds real numbers; to numpy the types of `ml_dtypes` are of no kind."""
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


def input_specs(model: ir.Model) -> list[InputSpec]:
    """The inputs of a model that must be fed, that is, those without a default value.

    Args:
        model: a model whose graph inputs have types.

    Returns:
        One `InputSpec` an input, in the graph's order.

    Raises:
        CalibrationError: an input is not a tensor.
    """
    specs = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if not isinstance(value.type, ir.TensorType) or value.dtype in (None, ir.DataType.UNDEFINED):
            raise CalibrationError(
                f"input {value.name}",
                f"{value.type} is not a tensor",
                "use a model with tensor inputs",
            )
        shape = None if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape)
        specs.append(InputSpec(value.name or "", np.dtype(value.dtype.numpy()), shape))
    return specs


def load_samples(
    path: str | Path,
    inputs: Sequence[InputSpec],
    model_path: str | Path,
    *,
    samples: int,
    length: int,
    tokenizer: str | Path | None = None,
) -> list[Sample]:
    """Read calibration or evaluation samples.

    `.txt` is one text; `.jsonl` has an object with a string `text` on every line, joined by newlines into one
    text. Either is cut into `samples` windows of `length` tokens, spaced evenly over the text (overlapping if
    it is short). `.npz` has an array for each input, whose first axis counts the samples; at most `samples`
    of them are taken, spaced evenly. Attention masks, position ids, token types and an empty past are
    supplied where the file has none.

    Args:
        path: a `.txt`, `.jsonl` or `.npz` file.
        inputs: what the model takes.
        model_path: the ONNX file, beside which `tokenizer.json` and `config.json` lie.
        samples: how many samples at most.
        length: tokens a sample, special tokens included; without meaning for `.npz`.
        tokenizer: another `tokenizer.json`, or the folder that holds one.

    Returns:
        At least one sample; in each, every input of the model with a leading batch axis of 1.

    Raises:
        CalibrationError: the file cannot be read, is too short, or does not fit the model's inputs.
    """
    path, model_path = Path(path), Path(model_path)
    if samples < 1 or length < 1:
        raise CalibrationError(path, f"{samples} samples of length {length}", "give positive numbers")
    match path.suffix:
        case ".npz":
            loaded = _arrays(path, inputs, samples)
        case ".txt" | ".jsonl":
            ids = _token_input(path, inputs)
            limit = context_limit(model_path)
            if limit is not None and length > limit:
                raise CalibrationError(
                    path,
                    f"samples of {length} tokens, but {model_path} takes at most {limit}",
                    f"give --length {limit}",
                )
            tokens = _windows(path, load_tokenizer(model_path, tokenizer), samples, length)
            loaded = [{ids.name: window[None].astype(ids.dtype)} for window in tokens]
        case _:
            raise CalibrationError(
                path, f"cannot read samples from {path.suffix or 'such'} files", "give .txt, .jsonl or .npz"
            )
    complete = [supply_missing(sample, inputs, subject=path) for sample in loaded]
    for spec in inputs:
        shape = complete[0][spec.name].shape
        if not spec.accepts(shape):
            raise CalibrationError(
                path,
                f"a sample has {spec.name} of shape {list(shape)}, but the model takes {spec}",
                "give samples (or a --length) of the model's fixed size",
            )
    return complete


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
                f"give a .npz file with arrays named {', '.join(i.name for i in inputs if not _is_past(i))}",
            )
        complete[spec.name] = value
    return complete


def derive(spec: InputSpec, sample: Mapping[str, npt.NDArray[Any]], past_length: int) -> npt.NDArray[Any] | None:
    """The value of an input that follows from the token ids, or None."""
    ids = next((value for name, value in sample.items() if name.endswith("input_ids")), None)
    batch, length = ids.shape if ids is not None and ids.ndim == 2 else (1, None)
    if _is_past(spec) and past_length == 0 and spec.shape is not None:
        # The free axes of a cache are the batch, which leads, and the past.
        free = [batch, *([0] * (len(spec.shape) - 1))]
        return np.zeros([d if isinstance(d, int) else f for d, f in zip(spec.shape, free, strict=True)], spec.dtype)
    if spec.name == "use_cache_branch":
        return np.full(1, past_length > 0, spec.dtype)
    if length is None:
        return None
    end = past_length + length
    match spec.name.removeprefix("decoder_"):
        case "attention_mask":
            return np.ones((batch, end), spec.dtype)
        case "position_ids":
            return np.tile(np.arange(past_length, end, dtype=spec.dtype), (batch, 1))
        case "cache_position":
            return np.arange(past_length, end, dtype=spec.dtype)
        case "token_type_ids":
            return np.zeros((batch, length), spec.dtype)
    return None


def _is_past(spec: InputSpec) -> bool:
    return spec.name.startswith("past") and spec.shape is not None and len(spec.shape) >= 3


def _token_input(path: Path, inputs: Sequence[InputSpec]) -> InputSpec:
    for spec in inputs:
        if spec.name.endswith("input_ids") and np.issubdtype(spec.dtype, np.integer):
            return spec
    raise CalibrationError(
        path,
        f"is text, but the model takes no token ids, only {'; '.join(map(str, inputs))}",
        "give a .npz file with an array for each of these inputs",
    )


def load_tokenizer(model_path: str | Path, tokenizer: str | Path | None = None) -> Tokenizer:
    """The tokenizer of a model, with truncation and padding switched off.

    Args:
        model_path: the ONNX file; `tokenizer.json` is looked for beside it.
        tokenizer: a `tokenizer.json`, or the folder that holds one, to use instead.

    Raises:
        CalibrationError: there is no such file, or it is not a tokenizer.
    """
    path = Path(tokenizer) if tokenizer is not None else Path(model_path).parent
    if path.is_dir():
        path /= "tokenizer.json"
    if not path.is_file():
        raise CalibrationError(path, "no such file", "put the model's tokenizer.json there or name it with --tokenizer")
    try:
        loaded: Tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CalibrationError(path, f"not a tokenizer ({error})", "give a Hugging Face tokenizer.json") from error
    loaded.no_truncation()
    loaded.no_padding()
    return loaded


def context_limit(model_path: str | Path) -> int | None:
    """How many tokens the model's positions reach, by the `config.json` beside it; None if unsaid."""
    try:
        config = json.loads((Path(model_path).parent / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    limits = [config.get(key) for key in ("max_position_embeddings", "n_positions")] if isinstance(config, dict) else []
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)


def _windows(path: Path, tokenizer: Tokenizer, samples: int, length: int) -> list[npt.NDArray[np.int64]]:
    """`samples` windows of `length` tokens, spaced evenly over the text."""
    prefix, suffix = _brackets(tokenizer)
    body = length - len(prefix) - len(suffix)
    tokens = np.asarray(tokenizer.encode(_read_text(path), add_special_tokens=False).ids, np.int64)
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
    starts = range(0, last + 1, max(1, last // samples))[:samples]
    return [np.concatenate([prefix, tokens[start : start + body], suffix]) for start in starts]


def _brackets(tokenizer: Tokenizer) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The special tokens before and after a text, if the tokenizer puts some on both sides; else none."""
    probe = tokenizer.encode("a")
    text = [i for i, special in enumerate(probe.special_tokens_mask) if not special]
    before, after = (probe.ids[: text[0]], probe.ids[text[-1] + 1 :]) if text else ([], [])
    if not (before and after):
        before, after = [], []
    return np.asarray(before, np.int64), np.asarray(after, np.int64)


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CalibrationError(path, f"cannot be read ({error.strerror})", "give a readable file") from error
    except UnicodeDecodeError as error:
        raise CalibrationError(path, f"is not UTF-8 (byte {error.start})", "give a UTF-8 text") from error
    if path.suffix == ".jsonl":
        text = "\n".join(_documents(path, text))
    if not text.strip():
        raise CalibrationError(path, "is empty", "give a file with text")
    return text


def _documents(path: Path, lines: str) -> Iterator[str]:
    """The `text` of every line of a JSON-lines file."""
    for number, line in enumerate(lines.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
        except ValueError as error:
            raise CalibrationError(
                path, f"line {number} is not JSON ({error})", "give one JSON object a line"
            ) from error
        if not isinstance(document, dict) or not isinstance(document.get("text"), str):
            raise CalibrationError(path, f"line {number} has no string 'text'", 'give lines like {"text": "..."}')
        yield document["text"]


def _arrays(path: Path, inputs: Sequence[InputSpec], samples: int) -> list[Sample]:
    """Up to `samples` rows of a `.npz` file, spaced evenly over it."""
    arrays = _read_npz(path)
    by_name = {spec.name: spec for spec in inputs}
    wanted = "; ".join(str(spec) for spec in inputs if not _is_past(spec))
    for name, array in arrays.items():
        spec = by_name.get(name)
        if spec is None:
            raise CalibrationError(path, f"the model has no input {name}", f"give arrays for {wanted}")
        if array.dtype.kind != spec.dtype.kind or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
            raise CalibrationError(path, f"{name} has type {array.dtype}", f"the model takes {spec}")
        if array.ndim == 0 or not spec.accepts((1, *array.shape[1:])):
            raise CalibrationError(
                path,
                f"{name} has shape {list(array.shape)}",
                f"the model takes {spec}, with the samples along the first axis, each run as a batch of 1",
            )
        if not np.isfinite(array).all():
            raise CalibrationError(path, f"{name} holds NaN or infinity", "give finite values")
    counts = {name: len(array) for name, array in arrays.items()}
    count = min(counts.values(), default=0)
    if count == 0:
        raise CalibrationError(path, "holds no samples", f"give arrays for {wanted}")
    if count != max(counts.values()):
        raise CalibrationError(path, f"arrays differ in their number of samples {counts}", "give as many in each")
    rows = range(0, count, max(1, count // samples))[:samples]
    return [{name: array[row : row + 1].astype(by_name[name].dtype) for name, array in arrays.items()} for row in rows]


def _read_npz(path: Path) -> Sample:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise CalibrationError(
            path, f"cannot be read ({error.strerror or error})", "give a readable .npz file"
        ) from error
    except (ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise CalibrationError(path, f"not an archive of plain arrays ({error})", "save it with numpy.savez") from error
