"""Run a compiled model beside the original, and refuse to call a broken one done."""

from __future__ import annotations

__all__ = ["Verification", "verify"]

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from qxcompiler.calibration.samples import Sample
from qxcompiler.errors import ModelError, VerificationError
from qxcompiler.evaluation.running import Runner
from qxcompiler.evaluation.similarity import evaluate_similarity

# far below what two bits leave of a model, far above what unrelated outputs give
_BROKEN_BELOW = 0.3


class Verification(BaseModel):
    """The compiled model beside the original, on samples not calibrated on.

    Attributes:
        samples: how many.
        cosine_similarity: of each output but cached keys and values, mean over the vectors along its last axis.
    """

    samples: int
    cosine_similarity: dict[str, float]


def verify(compiled: Path, original: Path, samples: Sequence[Sample]) -> Verification:
    """Compare the outputs of a compiled model with the original's.

    Args:
        compiled: the compiled ONNX file.
        original: the ONNX file it was compiled from.
        samples: inputs of both.

    Raises:
        VerificationError: the compiled model fails to run, or an output is not finite or has little to do with the
            original's.
    """
    reference = Runner(original)
    try:
        similarity = evaluate_similarity(Runner(compiled), reference, [(sample, sample) for sample in samples])
    except ModelError as error:
        raise VerificationError(original, f"its compiled model is broken ({error})", "report this as a bug") from error
    cosines = {name: output.cosine_similarity for name, output in similarity.outputs.items()}
    worst = min(cosines, key=cosines.__getitem__)
    if cosines[worst] < _BROKEN_BELOW:
        raise VerificationError(
            original,
            f"its compiled model is broken: output {worst} has cosine similarity {cosines[worst]:.3f} to the original",
            "use more bits, smaller groups, --quantizer gptq, or --keep the layers with the largest error",
        )
    return Verification(samples=similarity.windows, cosine_similarity=cosines)
