"""Perplexity, divergence from the reference, similarity, and text generation."""

from __future__ import annotations

__all__ = [
    "Evaluation",
    "Generation",
    "LanguageEvaluation",
    "OutputSimilarity",
    "SimilarityEvaluation",
    "Verification",
    "evaluate",
    "generate",
    "verify",
]

from qxcompiler.evaluation.dispatch import Evaluation, evaluate
from qxcompiler.evaluation.generation import Generation, generate
from qxcompiler.evaluation.language import LanguageEvaluation
from qxcompiler.evaluation.similarity import OutputSimilarity, SimilarityEvaluation
from qxcompiler.evaluation.verification import Verification, verify
