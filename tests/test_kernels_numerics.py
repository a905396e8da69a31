"""The kernels against the Python decode, for every instruction set that this machine has."""

from __future__ import annotations

import itertools
import os
from functools import partial

import numpy as np
import onnx
import onnx_ir as ir
import operator_models
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_models import (
    FAMILIES,
    SWIGLU_TOLERANCE,
    TOLERANCE,
    as_activation,
    available_isas,
    expected_matmul,
    expected_swiglu,
    format_of,
    gather_model,
    random_rows,
    random_weight,
    relative_error,
    run,
    session_of,
)

from qxcompiler.formats import GROUP_SIZES, KERNEL_ACTIVATIONS, FloatGrid, IntegerGrid, QuantizedWeight, parse_format

SIZES = (1, 7, 31, 64, 100, 576, 1536, 4096)
LARGE = 1_000_000  # weights
ISAS = available_isas()
matmul_model = partial(operator_models.matmul_model, with_body=False)
swiglu_model = partial(operator_models.swiglu_model, with_body=False)


def check(family: str, group_size: int | None, N: int, K: int, M: int, activation: str, isa: str, seed: int) -> None:
    weight = random_weight(format_of(family, group_size), N, K, seed)
    a, bias = random_rows((M, K), seed), np.random.default_rng(seed).standard_normal(N).astype(np.float32)
    y = run(matmul_model(weight, activation, bias), a, isa)
    expected = expected_matmul(weight, a, bias, activation)
    tolerance = TOLERANCE[activation]
    if y.size < 16:  # few numbers may all cancel: the error is small beside what is added up
        magnitudes = np.abs(a).astype(np.float64) @ np.abs(weight.decode().double().numpy().T)
        tolerance *= max(1.0, float(np.linalg.norm(magnitudes) / np.linalg.norm(expected)) / 32)
    assert relative_error(y, expected) <= tolerance


@pytest.mark.parametrize("activation", KERNEL_ACTIVATIONS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("isa", ISAS)
def test_every_format_and_group_size(isa: str, family: str, activation: str) -> None:
    for seed, (group_size, M) in enumerate(zip((*GROUP_SIZES, None), (1, 3, 1, 2, 9, 1), strict=True)):
        check(family, group_size, N=72, K=300, M=M, activation=activation, isa=isa, seed=seed)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    family=st.sampled_from(FAMILIES),
    group_size=st.sampled_from((*GROUP_SIZES, None)),
    N=st.integers(1, 150),
    K=st.integers(1, 600),
    M=st.integers(1, 20),
    activation=st.sampled_from(KERNEL_ACTIVATIONS),
    isa=st.sampled_from(ISAS),
    seed=st.integers(0, 2**31),
)
def test_random_shapes(
    family: str, group_size: int | None, N: int, K: int, M: int, activation: str, isa: str, seed: int
) -> None:
    check(family, group_size, N, K, M, activation, isa, seed)


@pytest.mark.parametrize("activation", KERNEL_ACTIVATIONS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("isa", ISAS)
def test_gate_of_every_format(isa: str, family: str, activation: str) -> None:
    for seed, (group_size, M) in enumerate(zip((*GROUP_SIZES, None), (1, 3, 1, 2, 40, 1), strict=True)):
        weight = random_weight(format_of(family, group_size), 96, 300, seed)
        a, bias = random_rows((M, 300), seed), np.random.default_rng(seed).standard_normal(96).astype(np.float32)
        y = run(swiglu_model(weight, activation, bias), a, isa)
        assert relative_error(y, expected_swiglu(weight, a, bias, activation)) <= SWIGLU_TOLERANCE[activation]


def gate_of(x: np.ndarray, up: int, isa: str) -> np.ndarray:
    """silu(x) * (up * x + 1 - up), for up of 0 or 1, in every lane."""
    codes = torch.full((32, 1), 129, dtype=torch.uint8)
    codes[16:] = 128 + up
    grid = IntegerGrid(parse_format("int8"), 1, torch.ones(32, 1), torch.full((32, 1), 128.0))
    bias = np.repeat(np.float32([0, 1 - up]), 16)
    return run(swiglu_model(QuantizedWeight(grid, codes), "a32", bias), x.reshape(-1, 1), isa)


@pytest.mark.parametrize("isa", ISAS)
def test_silu_is_exact_to_some_ulp(isa: str) -> None:
    spread = np.float32(2.0) ** np.linspace(-126, 126, 20_001, dtype=np.float32)
    near, zeros = np.linspace(-87, 90, 40_001, dtype=np.float32), np.float32([-0.0, 0.0])
    x = np.concatenate([near, zeros, spread, -spread[spread < 87]])
    exact = x / (1 + np.exp(-x.astype(np.float64)))
    ulp = np.spacing(np.abs(exact).astype(np.float32))
    y = gate_of(x, 0, isa)
    assert np.abs((y - exact[:, None]) / ulp[:, None]).max() <= 3.5
    assert (y == y[:, :1]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_silu_far_out(isa: str) -> None:
    x = np.float32([-100, -104, -110, -1e4, -3e38])
    with np.errstate(over="ignore"):
        exact = x / (1 + np.exp(-x.astype(np.longdouble)))
    assert np.abs(gate_of(x, 0, isa) - exact[:, None]).max() <= 1e-41
    y = gate_of(np.float32([np.inf, np.nan, -np.inf, 3e38]), 1, isa)
    assert (y[[0, 3]] == np.inf).all()
    assert np.isnan(y[[1, 2]]).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("isa", ISAS)
def test_codes_come_out_bit_identical(isa: str, family: str) -> None:
    """The rows of an identity matrix read every single weight, a multiple of half a scale or a float, out of Y."""
    weight = random_weight(format_of(family, 32), N=50, K=100, seed=1)
    decoded = weight.decode().numpy()
    y = run(matmul_model(weight, "a8"), np.eye(100, dtype=np.float32), isa).T
    single = np.concatenate(
        [run(matmul_model(weight, "a8"), row[None], isa) for row in np.eye(100, dtype=np.float32)[60:70]]
    ).T
    if isinstance(weight.grid, FloatGrid) and weight.format.bits > 4:  # the next code is an eighth away
        np.testing.assert_allclose(y, decoded, rtol=1e-6)
        np.testing.assert_allclose(single, decoded[:, 60:70], rtol=1e-6)
        return
    scales = weight.grid.column_scales(slice(None)).numpy()
    codes = np.round(2 * decoded / scales) / 2  # float32 rounds what scales of 19 bits make of them
    np.testing.assert_allclose(decoded / scales, codes, rtol=1e-6)
    np.testing.assert_array_equal(np.round(2 * y / scales) / 2, codes)
    np.testing.assert_array_equal(np.round(2 * single / scales[:, 60:70]) / 2, codes[:, 60:70])


@pytest.mark.parametrize("group_size", [16, 64, None])
@pytest.mark.parametrize("family", FAMILIES)
def test_gather_is_exactly_the_decode(family: str, group_size: int | None) -> None:
    weight = random_weight(format_of(family, group_size), N=37, K=100, seed=2)
    indices = np.array([[0, 36, 16], [-1, -37, 15]])
    for dtype in (ir.DataType.INT64, ir.DataType.INT32):
        y = run(gather_model(weight, dtype), indices.astype(dtype.numpy()), ISAS[-1])
        np.testing.assert_array_equal(y, weight.decode().numpy()[indices])


def test_gather_of_one_index_and_of_none() -> None:
    weight = random_weight(format_of("int4", 32), N=5, K=40, seed=3)
    session = session_of(gather_model(weight), ISAS[-1])
    assert session.run(None, {"data": np.array(3)})[0].shape == (40,)
    assert session.run(None, {"data": np.zeros((2, 0), np.int64)})[0].shape == (2, 0, 40)


@pytest.mark.parametrize("index", [5, -6, 2**40])
def test_gather_outside_the_matrix_is_an_error(index: int) -> None:
    weight = random_weight(format_of("int4", 32), N=5, K=40, seed=3)
    with pytest.raises(Exception, match=f"'the_node': index {index} is outside 5 rows"):
        run(gather_model(weight), np.array([index]), ISAS[-1])


@pytest.mark.parametrize("activation", KERNEL_ACTIVATIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_shapes_of_a(isa: str, activation: str) -> None:
    weight = random_weight(format_of("lut3", 32), N=72, K=100, seed=4)
    session = session_of(matmul_model(weight, activation), isa)
    for shape in ((100,), (0, 100), (2, 0, 100), (2, 3, 100), (1, 1, 1, 100), (130, 100)):
        a = random_rows(shape, 5)
        y = session.run(None, {"data": a})[0]
        assert y.shape == (*shape[:-1], 72)
        assert relative_error(y, expected_matmul(weight, a, 0, activation)) <= TOLERANCE[activation]


@pytest.mark.parametrize("with_body", [False, True])
@pytest.mark.parametrize("activation", KERNEL_ACTIVATIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_float16_in_and_out(isa: str, activation: str, with_body: bool) -> None:
    """What float32 gives for the same numbers, rounded once; the function body beside it must not mind."""
    weight = random_weight(format_of("int3", 32), N=72, K=100, seed=4)
    model = onnx.load_from_string(operator_models.matmul_model(weight, activation, with_body=with_body))
    a = np.random.default_rng(5).standard_normal((3, 100)).astype(np.float16)
    expected = session_of(model.SerializeToString(), isa).run(None, {"data": a.astype(np.float32)})[0]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    y = session_of(model.SerializeToString(), isa).run(None, {"data": a})[0]
    np.testing.assert_array_equal(y, expected.astype(np.float16))


@pytest.mark.parametrize("activation", KERNEL_ACTIVATIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_rows_with_nan_and_infinity_behave_as_in_a_float_product(isa: str, activation: str) -> None:
    weight = random_weight(format_of("int3", 32), N=72, K=100, seed=6)
    a = random_rows((6, 100), 7)
    a[0, 3], a[2, 99], a[4, 0], a[5, [1, 2]] = np.nan, np.inf, -np.inf, (np.inf, -np.inf)
    with np.errstate(invalid="ignore"):
        reference = a.astype(np.float64) @ weight.decode().double().numpy().T
    y = run(matmul_model(weight, activation), a, isa)
    for row in (0, 2, 4, 5):
        np.testing.assert_array_equal(np.isnan(y[row]), np.isnan(reference[row]))
        np.testing.assert_array_equal(np.nan_to_num(y[row]), np.nan_to_num(reference[row].astype(np.float32)))
    finite = [1, 3]
    assert relative_error(y[finite], expected_matmul(weight, a[finite], 0, activation)) <= TOLERANCE[activation]


@pytest.mark.parametrize("activation", KERNEL_ACTIVATIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_numbers_of_extreme_size(isa: str, activation: str) -> None:
    weight = random_weight(format_of("int4", 32), N=72, K=64, seed=8)
    for magnitude in (1e-37, 1e-25, 1e30):
        a = (random_rows((1, 64), 9) / 1e3 * np.float32(magnitude)).astype(np.float32)
        y = run(matmul_model(weight, activation), a, isa)
        assert relative_error(y, expected_matmul(weight, a, 0, activation)) <= TOLERANCE[activation]


def test_instruction_sets_agree() -> None:
    """Integers are exact everywhere; only the order of float additions differs."""
    for family, activation in itertools.product(("int8", "int5@a", "lut4"), KERNEL_ACTIVATIONS):
        weight = random_weight(format_of(family, 64), N=64, K=500, seed=10)
        a = random_rows((5, 500), 11)
        outputs = [run(matmul_model(weight, activation), a, isa) for isa in ISAS]
        for y in outputs[1:]:
            assert relative_error(y, outputs[0]) <= 5e-7


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_the_result(threads: int) -> None:
    weight = random_weight(format_of("lut3", 128), N=333, K=576, seed=12)
    a = random_rows((5, 576), 13)
    gated = random_weight(format_of("lut3", 128), N=352, K=576, seed=12)
    for model in (matmul_model(weight, "a16"), swiglu_model(gated, "a16")):
        np.testing.assert_array_equal(run(model, a, ISAS[-1], threads), run(model, a, ISAS[-1], 1))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_full_sweep(family: str) -> None:
    """Rows are independent, so that one reference serves all M. Group sizes take turns, and a bias with none.

    So do large matrices, of which each family meets two of six, in one activation precision, but for QXC_ALL_SIZES=1.
    """
    group_sizes = itertools.cycle((128, 32, None, 64, 16, 256))
    turn, biased = itertools.count(FAMILIES.index(family)), itertools.count(FAMILIES.index(family))
    for K, N in itertools.product(SIZES, SIZES):
        if K * N >= LARGE and next(turn) % 3 and not os.environ.get("QXC_ALL_SIZES"):
            continue
        fmt = format_of(family, next(group_sizes))
        weight = random_weight(fmt, N, K, seed=K * N)
        a = random_rows((130, K), K + N)
        for activation in (
            KERNEL_ACTIVATIONS
            if K * N < LARGE
            else KERNEL_ACTIVATIONS[FAMILIES.index(family) % len(KERNEL_ACTIVATIONS) :][:1]
        ):
            # with one codebook, whose random entries may be much alike, all outputs of a row share one rounding error
            # of A's, where others average many
            tolerance = TOLERANCE[activation] * (2 if activation == "a16" and family.endswith("@t") else 1)
            bias = np.random.default_rng(N).standard_normal(N).astype(np.float32) if next(biased) % 2 else None
            reference = expected_matmul(weight, a, 0 if bias is None else bias, activation)
            # how large outputs would be if products had random signs: a row's may cancel together, and then errors,
            # which are of this size, are no measure of the outputs
            typical = np.sqrt(as_activation(a, activation) ** 2 @ weight.decode().double().numpy().T ** 2)
            session = session_of(matmul_model(weight, activation, bias), ISAS[-1], threads=2)
            for M in (0, 1, 3, 16, 130):
                y = session.run(None, {"data": a[:M].reshape(-1, 1, K)})[0]
                expected = reference[:M].reshape(-1, 1, N)
                error = np.linalg.norm(y - expected)
                size = max(np.linalg.norm(expected), np.linalg.norm(typical[:M]))
                assert error <= tolerance * size, (fmt.name, K, N, M, activation)
