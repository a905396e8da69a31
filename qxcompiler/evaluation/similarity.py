"""How closely a model without a vocabulary follows its reference: encoders of text, images and sound."""

from __future__ import annotations

__all__ = ["OutputSimilarity", "SimilarityEvaluation", "evaluate_similarity"]

import time
from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel

from qxcompiler.calibration.samples import Sample
from qxcompiler.errors import ModelError
from qxcompiler.evaluation.running import Runner


class OutputSimilarity(BaseModel):
    """One output beside the reference's.

    Attributes:
        cosine_similarity: mean over all vectors along the last axis.
        relative_error: |Y - Y_ref| / |Y_ref|, L2 over all samples together.
    """

    cosine_similarity: float
    relative_error: float


class SimilarityEvaluation(BaseModel):
    """How closely a model follows its reference.

    Attributes:
        windows: how many samples were compared.
        cosine_similarity: mean over the outputs.
        relative_error: mean over the outputs.
        outputs: the figures of each output.
        seconds: time spent in the model under measurement.
    """

    kind: Literal["similarity"] = "similarity"
    windows: int
    cosine_similarity: float
    relative_error: float
    outputs: dict[str, OutputSimilarity]
    seconds: float


def evaluate_similarity(
    model: Runner, reference: Runner, pairs: Iterable[tuple[Sample, Sample]]
) -> SimilarityEvaluation:
    """Compare the outputs of two models, holding one sample at a time.

    Args:
        model: the model under measurement.
        reference: the model that it should follow, with the same outputs. Cached keys and values are not
            compared.
        pairs: each sample as inputs of the model and as inputs of the reference.

    Raises:
        ModelError: a model cannot be run, or its outputs do not fit the reference's or are not finite.
    """
    names = [name for name in reference.outputs if not name.startswith("present")]
    if missing := [name for name in names if name not in model.outputs]:
        raise ModelError(model.path, f"has no output {missing[0]}", f"give a reference other than {reference.path}")
    # For each output: the sum of cosines, their number, and the squared norms of the error and of the
    # reference.
    sums = {name: torch.zeros(4, dtype=torch.float64) for name in names}
    windows = 0
    seconds = 0.0
    for sample, reference_sample in pairs:
        start = time.perf_counter()
        actual = model.run(sample, names)
        seconds += time.perf_counter() - start
        expected = reference.run(reference_sample, names)
        windows += 1
        for name, y, y_ref in zip(names, actual, expected, strict=True):
            if y.shape != y_ref.shape:
                raise ModelError(
                    model.path,
                    f"output {name} has shape {list(y.shape)}, but {list(y_ref.shape)} in the reference",
                    "give a reference of the same architecture",
                )
            sums[name] += _scores(*(torch.from_numpy(np.atleast_1d(a)).double() for a in (y, y_ref)))
    for name, values in sums.items():
        if not values.isfinite().all():
            raise ModelError(model.path, f"output {name} holds NaN or infinity", "compile again with more bits")
    outputs = {
        name: OutputSimilarity(
            cosine_similarity=(cosines / count).item(),
            relative_error=(error / norm.clamp_min(torch.finfo(torch.float64).tiny)).sqrt().item(),
        )
        for name, (cosines, count, error, norm) in sums.items()
    }
    return SimilarityEvaluation(
        windows=windows,
        cosine_similarity=sum(o.cosine_similarity for o in outputs.values()) / len(outputs),
        relative_error=sum(o.relative_error for o in outputs.values()) / len(outputs),
        outputs=outputs,
        seconds=seconds,
    )


def _scores(y: torch.Tensor, y_ref: torch.Tensor) -> torch.Tensor:
    cosines = torch.nn.functional.cosine_similarity(y, y_ref, dim=-1)
    return torch.stack(
        [
            cosines.sum(),
            torch.tensor(float(cosines.numel()), dtype=torch.float64),
            (y - y_ref).square().sum(),
            y_ref.square().sum(),
        ]
    )
