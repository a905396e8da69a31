"""Perplexity, divergence from the reference, similarity, text generation, and how fast it is."""

from __future__ import annotations

__all__ = [
    "Comparison",
    "Evaluation",
    "Generation",
    "LanguageEvaluation",
    "OutputSimilarity",
    "Rates",
    "SimilarityEvaluation",
    "Verification",
    "bench",
    "compared_outputs",
    "evaluate",
    "generate",
    "verify",
]

from qxcompiler.evaluation.dispatch import Evaluation, evaluate
from qxcompiler.evaluation.generation import Generation, generate
from qxcompiler.evaluation.language import LanguageEvaluation
from qxcompiler.evaluation.rates import Rates, bench
from qxcompiler.evaluation.similarity import Comparison, OutputSimilarity, SimilarityEvaluation, compared_outputs
from qxcompiler.evaluation.verification import Verification, verify
