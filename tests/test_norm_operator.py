"""The norms: kernels of every instruction set and function bodies beside NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from norm_models import draw_norm_inputs, expected_norm, norm_model
from operator_models import available_isas, run_in, session_of

from qxcompiler.runtime_ops.norm import NORM_TYPES
from qxcompiler.runtime_ops.operators import MINIMUM_OPSET
from qxcompiler_runtime import ops_library

BEST = available_isas()[-1]
EVERY = [None, *available_isas()]
NAMES = [each.name for each in NORM_TYPES]
TOLERANCE = {np.float32: 1e-5, np.float16: 4e-3}  # of results near 1


def check(outputs: list[np.ndarray], wanted: list[np.ndarray], dtype: type[np.generic] = np.float32) -> None:
    assert len(outputs) == len(wanted)
    for output, each, tolerance in zip(outputs, wanted, (TOLERANCE[dtype], 0), strict=False):
        assert output.dtype == dtype
        assert output.shape == each.shape
        np.testing.assert_allclose(output, each, rtol=tolerance, atol=tolerance)


SHAPES = st.tuples(
    st.lists(st.integers(0, 4), max_size=3), st.one_of(st.integers(1, 70), st.sampled_from([576, 1000]))
).map(lambda drawn: (*drawn[0], drawn[1]))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.integers(0, 2**32 - 1),
    SHAPES,
    st.sampled_from([np.float32, np.float16]),
    st.sampled_from([1e-5, 1e-6, 0.1, 1e-12]),
)
def test_kernels_and_bodies_compute_what_numpy_does(
    name: str, seed: int, shape: tuple[int, ...], dtype: type[np.generic], epsilon: float
) -> None:
    inputs = draw_norm_inputs(name, seed, shape, dtype)
    if shape[-1] == 1 and "bias" in inputs:
        epsilon = 0.1  # a single number is its own mean
    model = norm_model(name, dtype, epsilon=epsilon)
    for isa in EVERY:
        check(session_of(model, isa).run(None, inputs), expected_norm(inputs, epsilon), dtype)


@pytest.mark.parametrize("isa", EVERY)
@pytest.mark.parametrize("name", NAMES)
def test_sizes_that_a_model_leaves_open_and_constants(name: str, isa: str | None) -> None:
    inputs = draw_norm_inputs(name, 2, (2, 3, 20))
    for shapes in (
        {each: [None] * array.ndim for each, array in inputs.items()},
        {each: ["batch", None, "N"][-array.ndim :] for each, array in inputs.items()},
        {each: list(array.shape) for each, array in inputs.items()},
    ):
        check(session_of(norm_model(name, shapes=shapes), isa).run(None, inputs), expected_norm(inputs))
    row = inputs["gain"]
    fed = {each: array for each, array in inputs.items() if each not in ("gain", "bias")}
    same = {each: array if each in fed else row for each, array in inputs.items()}
    check(session_of(norm_model(name, row=row), isa).run(None, fed), expected_norm(same))


@pytest.mark.parametrize("isa", EVERY)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [5, 37])
def test_nan_and_infinity_stay_in_their_rows(name: str, size: int, isa: str | None) -> None:
    """An infinity leaves zeros beside it in an RMS norm, and NaN everywhere where the mean is subtracted."""
    inputs = draw_norm_inputs(name, 3, (4, size))
    inputs["X"][1, 2], inputs["X"][2, size - 1] = np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        wanted = expected_norm(inputs)
    check(session_of(norm_model(name), isa).run(None, inputs), wanted)
    assert np.isnan(wanted[0][1]).all() and np.isfinite(wanted[0][[0, 3]]).all()


@pytest.mark.parametrize("isa", EVERY)
@pytest.mark.parametrize("name", NAMES)
def test_tiny_and_large_numbers(name: str, isa: str | None) -> None:
    """A variance far below epsilon, none at all, and squares near the largest float32."""
    inputs = draw_norm_inputs(name, 4, (5, 33))
    for each in {"X", "skip"} & set(inputs):
        inputs[each][:2] = inputs[each][:2] * 1e-12
        inputs[each][2] = 0.25
        inputs[each][3] = np.sign(inputs[each][3]) * 1e18
    outputs = session_of(norm_model(name, epsilon=1e-12), isa).run(None, inputs)
    assert np.isfinite(outputs[0]).all()
    check(outputs, expected_norm(inputs, 1e-12))


@pytest.mark.parametrize("name", NAMES)
def test_threads_change_nothing(name: str) -> None:
    inputs = draw_norm_inputs(name, 5, (3, 150, 96))
    one, four = (session_of(norm_model(name), BEST, threads).run(None, inputs) for threads in (1, 4))
    check(one, expected_norm(inputs))
    for a, b in zip(one, four, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_functions_are_valid_onnx(name: str) -> None:
    for opset in (MINIMUM_OPSET, 21, 23):
        proto = onnx.load_model_from_string(norm_model(name, opset=opset))
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim.add().dim_param = "M"  # the checker wants some shape
        onnx.checker.check_model(proto)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("name", NAMES)
def test_the_library_runs_models_without_bodies(name: str, isa: str) -> None:
    inputs = draw_norm_inputs(name, 6, (2, 20), np.float16)
    session = session_of(norm_model(name, np.float16, with_body=False), isa)
    check(session.run(None, inputs), expected_norm(inputs), np.float16)


@pytest.mark.parametrize(("version", "with_library"), [("1.16.3", False), ("1.20.1", True), ("1.20.1", False)])
@pytest.mark.parametrize("name", NAMES)
def test_older_runtimes(name: str, version: str, with_library: bool, tmp_path: Path) -> None:
    inputs = draw_norm_inputs(name, 7, (2, 3, 20))
    done = run_in(version, str(ops_library()) if with_library else "", norm_model(name), inputs, tmp_path)
    assert done.returncode == 0, done.stderr
    check([np.load(tmp_path / "y.npy")], expected_norm(inputs)[:1])


@pytest.mark.parametrize(
    ("epsilon", "message"),
    [
        (-1.0, "epsilon is neither positive nor 0"),
        (float("nan"), "epsilon is neither positive nor 0"),
        (None, "attribute 'epsilon' is missing, or no float"),
        (1, "attribute 'epsilon' is missing, or no float"),
    ],
)
def test_an_epsilon_that_is_none(epsilon: object, message: str) -> None:
    with pytest.raises(Exception, match=f"'the_node': {message}"):
        session_of(norm_model("RMSNorm", with_body=False, epsilon=epsilon), BEST)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("X", (), r"input 'X' is float32 \[\] instead of float32 or float16, with a last axis"),
        ("X", (2, 0), r"input 'X' is float32 \[2, 0\] instead of float32 or float16, with a last axis"),
        ("skip", (1, 20), r"input 'skip' has shape \[1, 20\] instead of \[2, 20\]"),
        ("gain", (19,), r"input 'gain' has shape \[19\] instead of \[20\]"),
        ("bias", (1, 20), r"input 'bias' has shape \[1, 20\] instead of \[20\]"),
    ],
)
def test_inputs_of_other_shapes(name: str, shape: tuple[int, ...], message: str) -> None:
    inputs = draw_norm_inputs("SkipLayerNorm", 8, (2, 20)) | {name: np.zeros(shape, np.float32)}
    with pytest.raises(Exception, match=message):
        session_of(norm_model("SkipLayerNorm"), BEST).run(None, inputs)


def test_constants_of_other_shapes() -> None:
    """Such a row is refused when it meets the data, or before."""
    inputs = draw_norm_inputs("RMSNorm", 9, (2, 20))
    session = session_of(norm_model("RMSNorm", row=np.ones(19, np.float32)), BEST)
    with pytest.raises(Exception, match=r"input 'gain' has shape \[19\] instead of \[20\]"):
        session.run(None, {"X": inputs["X"]})
    with pytest.raises(Exception, match=r"input 'gain' has shape \[4, 5\] instead of \[20\]"):
        session_of(norm_model("RMSNorm", row=np.ones((4, 5), np.float32), with_body=False), BEST)
