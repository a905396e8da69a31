"""Random small graphs: what the compiler makes of them computes what they compute."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from corpus_onnx import write_plan
from hypothesis import HealthCheck, assume, event, given, settings
from random_graphs import Case, graphs

import qxcompiler
from qxcompiler.errors import ModelError
from qxcompiler.graph import find_sites, load_model, normalize

EXAMPLES = int(os.environ.get("QXC_RANDOM_GRAPHS", "80"))
# Weights are exact in eight bits, so that what is left is the order of sums.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "float64": 1e-3}


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def check(case: Case, calibrated: bool) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        check_in(Path(scratch), case, calibrated)


def check_in(folder: Path, case: Case, calibrated: bool) -> None:
    path = folder / "model.onnx"
    onnx.save(case.model, path)
    try:
        original = session(path)
        expected = [original.run(None, feed) for feed in case.feeds]
    except Exception as error:
        event(f"onnxruntime: {str(error)[:60]}")
        assume(False)
    finite = all(np.isfinite(y).all() for outputs in expected for y in outputs)
    assume(finite)
    graph = load_model(path)
    normalize(graph)
    sites = find_sites(graph)
    if not sites:
        event("no sites")
        try:
            qxcompiler.compile(path, "cpu-x86", folder / "out", quantizer="rtn")
        except ModelError as error:
            assert "no linear layer" in str(error)
            return
        raise AssertionError("compiled without a site")
    event(f"{min(len(sites), 5)} sites")
    write_plan(path, "int8g16/a32", folder / "plan.yaml")
    options = {"calibration": iter(case.feeds)} if calibrated else {"quantizer": "rtn"}
    # the search for inputs of unknown rank can take its 20 seconds
    options["verification"] = all(value.type.tensor_type.HasField("shape") for value in case.model.graph.input)
    report = qxcompiler.compile(path, "cpu-x86", folder / "out", plan=folder / "plan.yaml", **options)
    assert all(site.quantizer for site in report.sites)
    compiled = folder / "out" / "model.onnx"
    for packed in (qxcompiler.session(compiled), session(compiled)):
        for feed, wanted in zip(case.feeds, expected, strict=True):
            for found, y in zip(packed.run(None, feed), wanted, strict=True):
                assert found.dtype == y.dtype
                assert found.shape == y.shape
                error = np.linalg.norm((found.astype(np.float64) - y).ravel())
                size = np.linalg.norm(y.astype(np.float64).ravel())
                assert error <= TOLERANCE[y.dtype.name] * (size + np.sqrt(y.size) * 1e-1), f"error {error / size:.2g}"


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 1000,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(graphs())
def test_a_random_graph_computes_the_same_rounded_to_nearest(case):
    check(case, calibrated=False)


@settings(
    max_examples=EXAMPLES // 2,
    deadline=None,
    derandomize=EXAMPLES <= 1000,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(graphs())
def test_a_random_graph_computes_the_same_calibrated(case):
    check(case, calibrated=True)
