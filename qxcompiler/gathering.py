"""The samples of a compile: read from files, fed from Python, or written by the model itself."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy.typing as npt
import onnx
import onnx_ir as ir
import tokenizers

from qxcompiler.allocation.errors import TERMS
from qxcompiler.calibration.samples import Sample, default_length, input_specs, load_mixed, load_samples
from qxcompiler.companions import COMPANIONS, CONFIGURATIONS, files_beside
from qxcompiler.config import SELF, file_digest, made_with
from qxcompiler.errors import UsageError
from qxcompiler.evaluation.writing import can_write, write_texts
from qxcompiler.graph import model_files
from qxcompiler.options import LIMITS, Options
from qxcompiler.progress import Track
from qxcompiler.quantizers import find_quantizer
from qxcompiler.staging import WORK
from qxcompiler_runtime.configuration import context_limit

__all__ = ["HELD_BACK", "WRITTEN", "Calibration", "default_calibration", "files_of", "gather_samples"]

Calibration: TypeAlias = str | Path | Sequence[str | Path] | Iterable[Mapping[str, npt.NDArray[Any]]]

WRITTEN = "self-calibration.jsonl"  # what the model wrote to be calibrated on

# Samples that verification runs on: windows of text hold many numbers, other samples perhaps one each.
HELD_BACK, _MOST_HELD_BACK = 2, 16


def default_calibration(
    graph: ir.Model, original: Path | onnx.ModelProto, options: Options, *, writes: bool
) -> Path | None:
    """What a model is calibrated on where nothing is given: what it writes, if it can.

    Args:
        graph: the model.
        original: its file, or itself in memory.
        options: of the compile.
        writes: whether it shall write although the options need no samples.
    """
    needed = writes or _needs_samples(options)
    return SELF if needed and isinstance(original, Path) and can_write(graph, original) else None


def gather_samples(
    graph: ir.Model,
    original: Path | onnx.ModelProto,
    calibration: Calibration | None,
    written: Path,
    options: Options,
    track: Track,
) -> tuple[list[Sample], list[Sample]]:
    """Samples to calibrate on, and those held back to measure the result on; a single sample serves for both.

    Args:
        graph: the model.
        original: its file, or itself in memory.
        calibration: what the user gave, or `default_calibration`.
        written: where what it writes is kept, in a stage.
        options: of the compile.
        track: shows progress.

    Raises:
        UsageError: samples are needed, and there are none.
        CalibrationError: samples cannot be read, or do not fit the model.
    """
    inputs, path, length = input_specs(graph), original if isinstance(original, Path) else None, options.length
    files = files_of(calibration)
    if calibration is None:
        if needs := _needs_samples(options):
            without = {"--quantizer": "--quantizer rtn"} | dict.fromkeys(LIMITS.values(), "--error frobenius")
            other = without.get(needs.partition(" ")[0])
            remedy = f", or choose {other}" if other else ""
            raise UsageError(needs, "needs samples", f"give --calibration FILE{remedy}")
        return [], []
    wanted = max(options.samples, options.tune)
    is_text = files and all(file.suffix != ".npz" for file in files)
    measures = options.max_perplexity_increase is not None
    least = _MOST_HELD_BACK if measures else HELD_BACK
    asked = wanted + (least if is_text else _MOST_HELD_BACK)
    if SELF in files:
        for file in files:
            if file != SELF:  # writing takes minutes: see first whether the others can be read
                load_samples(file, inputs, path, samples=1, length=length)
        _write(graph, path, -(-asked // len(files)), written, options, track)
        files = [written if file == SELF else file for file in files]
    if files:
        loaded = load_mixed(files, inputs, path, samples=asked, length=length, seed=options.seed)
    else:
        loaded = load_samples(cast("Iterable[Sample]", calibration), inputs, path, samples=asked, length=length)
    spare = len(loaded) - wanted
    most = max(spare, len(loaded) // 2) if measures else len(loaded) - 1
    held_back = min(max(least, spare), most)
    return (loaded[:-held_back], loaded[-held_back:]) if held_back else (loaded, loaded)


def _write(graph: ir.Model, path: Path | None, count: int, written: Path, options: Options, track: Track) -> None:
    """Let the model write so many samples, unless a compile that was killed has them already."""
    if path is None:
        problem = "is for a model with its tokenizer beside it"
        raise UsageError("--calibration self", problem, "give the model's file, or samples")
    length = options.length or default_length(input_specs(graph), path)
    if (limit := context_limit(path)) is not None and length > limit:
        raise UsageError(f"--length {length}", f"is more than the model's context, {limit}", "give a smaller one")
    read = [*model_files(path, graph), *files_beside(path.parent, (*CONFIGURATIONS, *COMPANIONS))]
    versions = made_with([]).versions | {"tokenizers": tokenizers.__version__}
    depends = [versions, [file_digest(file) for file in read], count, length, options.seed]
    digest = hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]
    kept = written.parent.parent / WORK / f"{digest}.jsonl"
    if not kept.exists():
        # one more, for a text may have fewer tokens when it is read than it had when it was written
        texts = write_texts(path, texts=count + 1, length=length, seed=options.seed, track=track)
        kept.parent.mkdir(exist_ok=True)
        partial = kept.with_suffix(".partial")
        partial.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        partial.replace(kept)
    shutil.copyfile(kept, written)


def _needs_samples(options: Options) -> str | None:
    """The option that cannot do without samples, if there is one."""
    if "statistics" in find_quantizer(options.quantizer).needs:
        return f"--quantizer {options.quantizer}"
    if options.tune:
        return "--tune"
    if options.budget_option and TERMS[options.error].needs:
        return options.budget_option
    if options.max_perplexity_increase is not None:
        return LIMITS["max_perplexity_increase"]
    return None


def files_of(calibration: object) -> list[Path]:
    """The files of a calibration; none, if it is feeds."""
    if isinstance(calibration, (str, Path)):
        return [Path(calibration)]
    if isinstance(calibration, Sequence) and all(isinstance(each, (str, Path)) for each in calibration):
        return [Path(file) for file in calibration]
    return []
