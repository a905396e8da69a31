"""Measure a model on held-out samples, in the way that its outputs call for."""

from __future__ import annotations

__all__ = ["Evaluation", "evaluate"]

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy.typing as npt

from qxcompiler.calibration.samples import default_length, load_samples
from qxcompiler.errors import UsageError
from qxcompiler.evaluation.language import LanguageEvaluation, evaluate_language
from qxcompiler.evaluation.running import Runner
from qxcompiler.evaluation.similarity import SimilarityEvaluation, evaluate_similarity
from qxcompiler.progress import Track, silent
from qxcompiler_runtime.decoder import is_language_model

Evaluation: TypeAlias = LanguageEvaluation | SimilarityEvaluation


def evaluate(
    model_path: str | Path,
    text: str | Path | Iterable[Mapping[str, npt.NDArray[Any]]],
    *,
    tokenizer: str | Path | None = None,
    windows: int = 40,
    length: int | None = None,
    reference: str | Path | None = None,
    threads: int | None = None,
    track: Track = silent,
) -> Evaluation:
    """Measure a model.

    A model from token ids to logits is scored by perplexity and, with a reference, by KL divergence and top-1
    agreement. Any other model is compared with its reference by cosine similarity and relative error of its
    outputs.

    Args:
        model_path: the ONNX file.
        text: held-out samples, in any form that `load_samples` reads.
        tokenizer: a `tokenizer.json`, or the folder that holds one; by default the model's folder.
        windows: how many windows of text, or samples, at most.
        length: tokens a window; None is 512, or the models' own limit where that is less.
        reference: the ONNX file to compare with, usually the model before compilation.
        threads: threads of one operator; None lets onnxruntime choose.
        track: shows how far the work is.

    Returns:
        Figures with `model_dump_json()`; its `kind` says which.

    Raises:
        UsageError: the model has no logits and no reference was given.
        ModelError: a model cannot be loaded or run.
        CalibrationError: the samples cannot be read or do not fit.
    """
    model = Runner(model_path, threads=threads)
    baseline = None if reference is None else Runner(reference, threads=threads)
    # One tokenizer for both: ids are comparable only so.
    shared = tokenizer if tokenizer is not None else model.path.parent
    runners = [model] if baseline is None else [model, baseline]
    if length is None:
        length = min(default_length(runner.inputs, runner.path) for runner in runners)
    source = text if isinstance(text, (str, Path)) else list(itertools.islice(text, windows))
    samples, reference_samples = (
        load_samples(source, runner.inputs, runner.path, samples=windows, length=length, tokenizer=shared)
        for runner in (runners[0], runners[-1])
    )
    if len(samples) != len(reference_samples):
        raise UsageError(
            runners[-1].path,
            f"takes the samples in {len(reference_samples)} runs, {model.path} in {len(samples)}",
            "give a reference with the same batch",
        )
    pairs = track(list(zip(samples, reference_samples, strict=True)), "evaluation")
    if is_language_model(model):
        return evaluate_language(model, baseline, pairs)
    if baseline is None:
        raise UsageError(
            model.path,
            "has no logits over a vocabulary, only outputs to compare",
            "name a model with --reference",
        )
    return evaluate_similarity(model, baseline, pairs)
