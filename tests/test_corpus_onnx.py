"""The `onnx` package's own test models: those with layers, and a sample of the others with a layer grafted on.

`python benchmarks/corpus_onnx.py` runs all of them in every variant.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
from corpus_onnx import SCHEMES, Case, Variant, cases, check

BAD = ("differs", "false refusal", "bug")
LAYERS = {"MatMul", "Gemm", "Conv", "Gather"}


@pytest.fixture(scope="module")
def models() -> list[Case]:
    return list(cases())


def operators(graph: onnx.GraphProto) -> set[str]:
    """The operators of a graph and of its bodies."""
    bodies = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return {node.op_type for node in graph.node}.union(*map(operators, bodies))


def is_layer(case: Case) -> bool:
    """Whether a model is one operator that may carry a site."""
    return case.kind == "node" and len(case.model.graph.node) == 1 and bool(operators(case.model.graph) & LAYERS)


def outcomes(chosen: list[Case], variant: Variant, scheme: str, folder: Path) -> Counter[str]:
    """How many models came out how; none may come out badly."""
    counts: Counter[str] = Counter()
    for number, case in enumerate(chosen):
        scratch = folder / str(number)
        scratch.mkdir()
        result = check(case, variant, scheme, scratch)
        if result is None:
            continue
        assert result.outcome not in BAD, f"{case.kind}/{case.name}: {result.outcome}: {result.detail}"
        counts[result.outcome] += 1
    return counts


@pytest.mark.parametrize("scheme", SCHEMES)
def test_models_of_layers_agree_with_weights_made_constant(models, tmp_path, scheme):
    counts = outcomes(list(filter(is_layer, models)), "constant", scheme, tmp_path)
    assert counts["equal"] >= 10, counts


@pytest.mark.parametrize("scheme", SCHEMES)
def test_models_converted_from_pytorch_agree(models, tmp_path, scheme):
    chosen = [case for case in models if case.kind == "pytorch-converted" and operators(case.model.graph) & LAYERS]
    counts = outcomes(chosen, "as it is", scheme, tmp_path)
    assert counts["equal"] >= 3, counts
    assert counts["refused"] >= 20, counts  # convolutions of other than 1x1


def test_what_stands_beside_a_layer_stays_what_it_was(models, tmp_path):
    counts = outcomes(models[7::40], "grafted", next(iter(SCHEMES)), tmp_path)
    assert counts["equal"] >= 30, counts
