"""Measure a model on held-out samples, in the way that its outputs call for."""

from __future__ import annotations

__all__ = ["Evaluation", "evaluate"]

import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qxcompiler.calibration.samples import default_length, load_samples
from qxcompiler.errors import UsageError
from qxcompiler.evaluation.language import LanguageEvaluation, evaluate_language
from qxcompiler.evaluation.running import Runner
from qxcompiler.evaluation.similarity import SimilarityEvaluation, evaluate_similarity
from qxcompiler.progress import Track, silent
from qxcompiler_runtime.decoder import Decoder, is_language_model

Evaluation: TypeAlias = LanguageEvaluation | SimilarityEvaluation


def evaluate(
    model_path: str | Path,
    text: str | Path | Iterable[Mapping[str, npt.NDArray[Any]]],
    *,
    tokenizer: str | Path | None = None,
    windows: int = 40,
    length: int | None = None,
    chunk: int | None = None,
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
        chunk: tokens that a language model reads at once, at least 1; those before are what it has kept. None reads a
            window at once.
        reference: the ONNX file to compare with, usually the model before compilation.
        threads: threads of one operator; None lets onnxruntime choose.
        track: shows how far the work is.

    Returns:
        Figures with `model_dump_json()`; its `kind` says which.

    Raises:
        UsageError: the model has no logits and no reference was given; or it keeps nothing for another chunk.
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
        return evaluate_language(model, baseline, pairs, None if chunk is None else _chunked(model, chunk))
    if baseline is None:
        raise UsageError(
            model.path,
            "has no logits over a vocabulary, only outputs to compare",
            "name a model with --reference",
        )
    return evaluate_similarity(model, baseline, pairs)


def _chunked(model: Runner, chunk: int) -> Callable[[Mapping[str, Any]], npt.NDArray[Any]]:
    if chunk < 1 or not Decoder(model).uses_past:
        problem = "is less than a token" if chunk < 1 else "the model keeps no keys and values"
        raise UsageError(f"--chunk {chunk}", problem, "leave it out")

    def logits(sample: Mapping[str, Any]) -> npt.NDArray[Any]:
        decoder = Decoder(model)
        ids = sample[decoder.ids.name]
        pieces = [ids[:, at : at + chunk] for at in range(0, ids.shape[1], chunk)]
        return np.concatenate([decoder.step_of_each(piece) for piece in pieces], 1)

    return logits
