"""Perplexity, divergence from the reference, similarity."""

from __future__ import annotations

__all__ = [
    "Comparison",
    "Evaluation",
    "LanguageEvaluation",
    "OutputSimilarity",
    "SimilarityEvaluation",
    "Verification",
    "compared_outputs",
    "evaluate",
    "verify",
]

from qxcompiler.evaluation.dispatch import Evaluation, evaluate
from qxcompiler.evaluation.language import LanguageEvaluation
from qxcompiler.evaluation.similarity import Comparison, OutputSimilarity, SimilarityEvaluation, compared_outputs
from qxcompiler.evaluation.verification import Verification, verify
