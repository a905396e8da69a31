from __future__ import annotations

import itertools

import graph_models
import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from graph_models import Builder
from onnx import numpy_helper

import qxcompiler
from qxcompiler.calibration.statistics import InputStatistics
from qxcompiler.errors import UsageError
from qxcompiler.formats import parse_format, rotate
from qxcompiler.graph import find_sites, normalize
from qxcompiler.progress import silent
from qxcompiler.quantizers import QUANTIZERS, find_quantizer, quantize_segmentwise
from qxcompiler.quantizers.gptq import FEEDBACK, gptq
from qxcompiler.quantizers.rtn import rtn

CPU = torch.device("cpu")


def statistics_of(X):
    statistics = InputStatistics.empty(X.shape[1], CPU)
    statistics.add(X)
    return statistics


def correlated(tokens, features, seed=0):
    torch.manual_seed(seed)
    return torch.randn(tokens, features) @ torch.randn(features, features) * (0.1 + torch.rand(features))


def output_error(weight, quantized, X):
    return float((X @ (weight - quantized.decode()).T).norm())


@pytest.mark.parametrize("features", [12, 600])
def test_statistics_of_a_stream_are_those_of_the_whole(features):
    X = correlated(300, features)
    statistics = InputStatistics.empty(features, CPU)
    for part in X.split([1, 99, 0, 200]):
        statistics.add(part)
        torch.testing.assert_close(statistics.second_moment, statistics.second_moment.T, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(statistics.second_moment, X.T @ X / 300, rtol=1e-4, atol=1e-4 * features)
    torch.testing.assert_close(statistics.mean, X.mean(0), rtol=1e-4, atol=1e-5 * features)
    assert torch.equal(statistics.largest, X.abs().amax(0))
    assert statistics.tokens == 300
    torch.testing.assert_close(statistics.importance, X.square().mean(0), rtol=1e-4, atol=1e-5)


def naive_gptq(weight, fmt, statistics):
    """Optimal Brain Quantization in a fixed order (Frantar et al. 2023, equation 2), with a new inverse each time."""
    H = statistics.second_moment.double().clone()
    H += 0.01 * H.diagonal().mean() * torch.eye(len(H), dtype=torch.double)
    grid = fmt.fit(weight, statistics.importance)
    W = weight.double().clone()
    codes = torch.zeros(W.shape, dtype=torch.uint8)
    left = statistics.importance.argsort(descending=True, stable=True).tolist()
    while left:
        k = left[0]
        inverse = torch.linalg.inv(H[left][:, left])
        codes[:, k] = grid.encode(W[:, k : k + 1].float(), k)[:, 0]
        error = (W[:, k] - grid.decode(codes[:, k : k + 1], k)[:, 0].double()) / inverse[0, 0]
        W[:, left] -= error[:, None] * inverse[0][None, :]
        left = left[1:]
    return codes


@pytest.mark.parametrize("spec", ["int3g16a", "int4", "lut3g32", "lut2g16t", "ternaryg16", "mxfp4", "fp8e5m2g64"])
def test_gptq_is_optimal_brain_quantization_in_order(spec):
    torch.manual_seed(4)
    X = correlated(400, 150)  # longer than one block of columns
    weight, fmt, statistics = torch.randn(6, 150), parse_format(spec), statistics_of(X)
    same = gptq(weight, fmt, statistics).codes == naive_gptq(weight, fmt, statistics)
    assert same.float().mean() > 0.97  # a tie broken otherwise changes what follows in its row


@pytest.mark.parametrize(
    "spec", ["int3g32a", "int2", "lut3g32", "nf4g64", "int8g64", "ternaryg32", "mxfp4", "mxfp6e2m3", "mxint8"]
)
def test_gptq_beats_rounding_on_correlated_inputs(spec):
    X = correlated(500, 96)
    torch.manual_seed(5)
    weight, fmt = torch.randn(20, 96), parse_format(spec)
    assert output_error(weight, gptq(weight, fmt, statistics_of(X)), X) < 0.9 * output_error(
        weight, rtn(weight, fmt, statistics_of(X)), X
    )


def test_gptq_comes_near_the_best_of_all_codes():
    X = correlated(50, 5, seed=6)
    weight, fmt, statistics = torch.randn(1, 5), parse_format("int2"), statistics_of(X)
    found = gptq(weight, fmt, statistics)
    every = [
        float((X @ (weight - found.grid.decode(torch.tensor([codes], dtype=torch.uint8), slice(None))).T).norm())
        for codes in itertools.product(range(4), repeat=5)
    ]
    rounded = output_error(weight, rtn(weight, fmt, statistics), X)
    assert min(every) <= output_error(weight, found, X) + 1e-6
    assert output_error(weight, found, X) <= min(every) + 0.5 * (rounded - min(every)) + 1e-6


def drifted(X, original):
    """Statistics of inputs beside what the original model has in their place."""
    statistics = InputStatistics.empty(X.shape[1], CPU)
    for part, before in zip(X.split(70), original.split(70), strict=True):
        statistics.add(part, original=before)
    return statistics


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_the_drift_of_inputs(scale):
    X = scale * correlated(300, 12)
    original = X + 0.1 * scale * correlated(300, 12, seed=1)
    expected = ((original - X).double().T @ X.double() / 300 / scale**2).float()
    statistics = drifted(X, original)
    torch.testing.assert_close(statistics.drift * (statistics.unit / scale) ** 2, expected, rtol=1e-3, atol=1e-3)
    assert statistics_of(X).drift is None

    kept = torch.arange(300) % 100 > 0
    X[::200, 3], original[100, 5] = float("nan"), float("inf")
    statistics = drifted(X, original)
    expected = ((original - X)[kept].double().T @ X[kept].double() / 297 / scale**2).float()
    assert (statistics.tokens, statistics.skipped) == (297, 3)
    torch.testing.assert_close(statistics.drift * (statistics.unit / scale) ** 2, expected, rtol=1e-3, atol=1e-3)


def test_the_drift_of_tokens_that_count_and_of_rotated_inputs():
    X, rotation = correlated(300, 64), rotate(torch.eye(64))
    original, weights = X + 0.1 * correlated(300, 64, seed=1), torch.rand(300)
    statistics = InputStatistics.empty(64, CPU)
    statistics.add(X, weights, original)
    expected = (original - X).T @ (weights[:, None] * X) / weights.sum()
    torch.testing.assert_close(statistics.drift, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(statistics.rotated().drift, rotation.T @ expected @ rotation, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spec", ["int8g16", "int8g16h"])
def test_drift_is_made_up_for_as_least_squares_do(spec):
    """In codes so fine that rounding does not count (Li et al. 2025, equation 6, with all columns left)."""
    torch.manual_seed(12)
    X = torch.randn(800, 64) @ (torch.eye(64) + 0.05 * torch.randn(64, 64))
    original = X @ (torch.eye(64) + 0.05 * torch.randn(64, 64))
    fmt, weight, statistics = parse_format(spec), torch.randn(8, 64), drifted(X, original)
    given = (rotate(weight), fmt, statistics.rotated()) if fmt.rotated else (weight, fmt, statistics)
    expected = torch.lerp(weight, torch.linalg.lstsq(X, original @ weight.T).solution.T, FEEDBACK)
    assert (gptq(*given).decode() - expected).norm() < 0.1 * (expected - weight).norm()


def test_tokens_that_take_other_ways_in_the_original_say_nothing_of_drift():
    """As a mixture of experts sends them, once the weights before it are quantized."""
    X, statistics = correlated(300, 12), InputStatistics.empty(12, CPU)
    for part, before in ((X[:100], X[:100]), (X[100:200], X[100:199]), (X[200:], X[200:])):
        statistics.add(part, original=before)
    assert statistics.drift is None
    torch.testing.assert_close(statistics.second_moment, statistics_of(X).second_moment)


def test_layers_in_a_row_follow_the_original_by_gptaq():
    """Whose errors add up, on inputs like those it is calibrated on."""
    b, rng, value = Builder(), np.random.default_rng(3), "x"
    for _ in range(5):
        value = b.op("Relu", b.linear(value, 48, 48))
    proto = b.model({"x": (1, ["n", 48])}, [value])
    mix = rng.standard_normal((48, 48), dtype=np.float32) * np.logspace(0, -1, 48, dtype=np.float32)[:, None]
    samples = [{"x": rng.standard_normal((200, 48), dtype=np.float32) @ mix} for _ in range(6)]

    def output(weights):
        X = torch.from_numpy(samples[-1]["x"])
        for weight in weights:
            X = (X @ weight.T).relu()
        return X

    sites = find_sites(normalized(proto))
    expected = output([site.weight.matrix() for site in sites])
    errors = {}
    for name in ("gptq", "gptaq"):
        results = quantized_on(proto, samples[:-1], name, fmt="int3g16")
        errors[name] = float((output([result.decode() for result in results]) - expected).norm() / expected.norm())
    assert errors["gptaq"] < 0.95 * errors["gptq"] < 0.5


def test_gptq_with_uncorrelated_inputs_only_rounds():
    statistics = statistics_of(torch.eye(64) * 8)
    torch.manual_seed(7)
    weight, fmt = torch.randn(8, 64), parse_format("int3g16a")
    assert torch.equal(gptq(weight, fmt, statistics).codes, rtn(weight, fmt, statistics).codes)


def test_dead_inputs_are_rounded_and_do_not_disturb_the_others():
    X = correlated(200, 40)
    X[:, [3, 17]] = 0
    torch.manual_seed(8)
    weight, fmt = torch.randn(8, 40), parse_format("int4")
    quantized = gptq(weight, fmt, statistics_of(X))
    assert torch.equal(quantized.codes[:, [3, 17]], quantized.grid.encode(weight[:, [3, 17]], torch.tensor([3, 17])))
    assert output_error(weight, quantized, X) < output_error(weight, rtn(weight, fmt, statistics_of(X)), X)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_few_or_repeated_samples_are_damped_until_they_factorise(scale):
    X = scale * torch.ones(3, 64)  # rank 1
    torch.manual_seed(9)
    quantized = gptq(torch.randn(4, 64), parse_format("int4g32"), statistics_of(X))
    assert quantized.decode().isfinite().all()


def test_an_indefinite_moment_raises_the_damping():
    statistics = statistics_of(torch.eye(32))
    statistics.second_moment[0, 1] = statistics.second_moment[1, 0] = 0.2  # no longer a moment, beyond 1 % damping
    assert gptq(torch.randn(4, 32), parse_format("int4"), statistics).decode().isfinite().all()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantizer_works_without_statistics_and_repeats_itself(name):
    torch.manual_seed(10)
    weight, fmt = torch.randn(7, 33), parse_format("lut3g16")
    first, second = (find_quantizer(name).quantize(weight, fmt, None) for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    assert float((first.decode() - weight).norm() / weight.norm()) < 0.2


def test_an_unknown_quantizer_is_refused():
    with pytest.raises(UsageError, match=r"choose one of rtn, gptq"):
        find_quantizer("magic")


def test_dead_inputs_do_not_weaken_the_damping_of_small_ones():
    """A moment of rank 1 at a magnitude of 0.01, beside inputs that are always zero."""
    torch.manual_seed(11)
    X = 0.01 * correlated(40, 48)
    weight, fmt = torch.randn(8, 48), parse_format("int3g16")
    alone = gptq(weight, fmt, statistics_of(X))
    wide = torch.cat([weight, torch.randn(8, 48)], 1)
    beside = gptq(wide, fmt, statistics_of(torch.cat([X, torch.zeros_like(X)], 1)))
    assert torch.equal(beside.codes[:, :48], alone.codes)


@pytest.mark.parametrize("rows", [10, 1000])
def test_correlations_shrink_and_the_fewer_rows_the_more(rows):
    X, rotation = correlated(rows, 64), rotate(torch.eye(64))
    statistics = statistics_of(X)
    shrunk = statistics.shrunk(0.2)
    share = 1 - 0.8 / (1 + 64 / rows)
    moment = X.T @ X / rows
    expected = (1 - share) * moment + share * moment.diagonal().diag()
    torch.testing.assert_close(shrunk.shrunk_moment(), expected)
    order = torch.randperm(64)
    torch.testing.assert_close(shrunk.shrunk_moment(order), expected[order][:, order])
    torch.testing.assert_close(shrunk.second_moment, moment)
    torch.testing.assert_close(shrunk.rotated().second_moment, rotation.T @ expected @ rotation)
    assert shrunk.rotated().shrinkage == 0
    torch.testing.assert_close(statistics.shrunk_moment(), moment)


@pytest.mark.parametrize("spec", ["int3g16a", "lut3g16s8h"])
def test_what_is_learned_from_one_kind_serves_another(spec):
    """Whose inputs are as large, and half of which have little in common with each other."""
    kind = torch.randn(64, 64, generator=torch.Generator().manual_seed(12)) * torch.logspace(0, -1, 64)
    torch.manual_seed(13)
    seen, alike, mixed = (torch.randn(rows, 64) @ kind for rows in (500, 2000, 2000))
    mixed = torch.stack([column[torch.randperm(2000)] for column in mixed.T], 1)
    others = torch.cat([alike, mixed])
    weight, fmt = torch.randn(48, 64), parse_format(spec)

    def error(statistics):
        if not fmt.rotated:
            return output_error(weight, gptq(weight, fmt, statistics), others)
        return output_error(rotate(weight), gptq(rotate(weight), fmt, statistics.rotated()), rotate(others))

    assert error(statistics_of(seen).shrunk(0.2)) < error(statistics_of(seen))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_tokens_that_are_no_numbers_are_left_out_and_counted(bad):
    X = correlated(100, 12)
    poisoned = torch.cat([X[:50], X[:2], X[50:]])
    poisoned[50, 3], poisoned[51, 11] = bad, bad
    statistics = InputStatistics.empty(12, CPU)
    for part in poisoned.split(26):
        statistics.add(part)
    assert (statistics.tokens, statistics.skipped) == (100, 2)
    torch.testing.assert_close(statistics.second_moment, statistics_of(X).second_moment)
    torch.testing.assert_close(statistics.mean, statistics_of(X).mean)


def test_statistics_of_nothing_but_nan():
    statistics = statistics_of(torch.full((5, 4), torch.nan))
    assert (statistics.tokens, statistics.skipped) == (0, 5)
    assert not statistics.second_moment.any()


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e20, 1e37])
def test_magnitudes_whose_squares_are_beyond_float32(scale):
    X = correlated(64, 32)
    expected = statistics_of(X)
    torch.manual_seed(12)
    weight, fmt = torch.randn(6, 32), parse_format("int4g16")
    for parts in ([X * scale], (X * scale).split(10), [torch.zeros(3, 32), X * scale]):
        statistics = InputStatistics.empty(32, CPU)
        for part in parts:
            statistics.add(part)
        moment = statistics.second_moment.double() * (statistics.unit / scale) ** 2 * (statistics.tokens / 64)
        torch.testing.assert_close(moment.float(), expected.second_moment, rtol=1e-3, atol=1e-2)
        assert gptq(weight, fmt, statistics).decode().isfinite().all()


def test_one_huge_token_after_ordinary_ones():
    statistics = InputStatistics.empty(8, CPU)
    statistics.add(torch.ones(10, 8))
    assert statistics.unit == 1
    statistics.add(torch.full((1, 8), 1e20))
    torch.testing.assert_close(statistics.largest * statistics.unit, torch.full((8,), 1e20))
    assert statistics.second_moment.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_moment_that_is_not_finite_is_refused(bad):
    statistics = statistics_of(torch.eye(8))
    statistics.second_moment[3, 3] = bad
    with pytest.raises(ArithmeticError, match="not finite"):
        gptq(torch.randn(2, 8), parse_format("int4"), statistics)


def normalized(proto):
    model = ir.from_proto(proto)
    normalize(model)
    return model


def quantized_on(proto, samples, quantizer="gptq", fmt="int4g16"):
    model = normalized(proto)
    sites = find_sites(model)
    formats = {site.weight: parse_format(fmt) for site in sites}
    results = quantize_segmentwise(
        model, sites, formats, quantizer, samples, CPU, silent, {}, {}, lambda _, result: result
    )
    return [results[site.weight] for site in sites]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e20])
def test_numbers_that_a_where_masks_later(bad):
    b = Builder()
    x = b.op("Where", "mask", b.constant(np.float32(bad)), "x")
    y = b.op("Relu", b.linear(x, 32, 32))
    proto = b.model({"x": (1, ["n", 32]), "mask": (9, ["n", 1])}, [b.linear(y, 32, 16)])
    rng = np.random.default_rng(0)
    samples = [
        {"x": rng.standard_normal((6, 32), dtype=np.float32), "mask": np.arange(6)[:, None] == index}
        for index in range(4)
    ]
    first, second = quantized_on(proto, samples)
    assert (first.quantizer, first.reason) == ("gptq", None)
    assert first.skipped_tokens == (4 if not np.isfinite(bad) else 0)
    assert second.decode().isfinite().all()
    assert first.error < 0.5


def test_inputs_that_are_never_numbers_are_rounded_and_said_so():
    b = Builder()
    y = b.linear(b.op("Add", b.linear("x", 32, 32), b.constant(np.float32(np.nan))), 32, 16)
    first, second = quantized_on(b.model({"x": (1, ["n", 32])}, [y]), [{"x": np.ones((3, 32), np.float32)}])
    assert (first.quantizer, first.reason) == ("gptq", None)
    assert (second.quantizer, second.reason) == ("rtn", "its input is never finite")
    assert second.skipped_tokens == 3


def test_inputs_without_tokens_are_rounded_and_said_so():
    b = Builder()
    y = b.linear(b.op("Compress", "x", b.constant(np.zeros(3, bool)), axis=0), 32, 16)
    (result,) = quantized_on(b.model({"x": (1, [3, 32])}, [y]), [{"x": np.ones((3, 32), np.float32)}])
    assert (result.quantizer, result.reason) == ("rtn", "no sample reaches it")


def test_float64_beyond_float32_is_left_out():
    b = Builder()
    y = b.op("MatMul", "x", b.constant(np.eye(32, 16)))
    samples = [{"x": np.concatenate([np.full((1, 32), 1e300), np.eye(32)])}]
    (result,) = quantized_on(b.model({"x": (11, ["n", 32])}, [y]), samples)
    assert (result.quantizer, result.skipped_tokens) == ("gptq", 1)


def test_a_part_that_onnxruntime_cannot_load_by_itself():
    """No kernel of onnxruntime multiplies bfloat16."""
    b = Builder()
    weight = numpy_helper.from_array(np.eye(32, dtype=ml_dtypes.bfloat16), "w")
    b.initializers["w"] = weight
    x = b.op("MatMul", b.op("Cast", b.linear("x", 32, 32), to=16), "w")
    results = quantized_on(b.model({"x": (1, ["n", 32])}, [x]), [{"x": np.ones((3, 32), np.float32)}])
    assert [result.quantizer for result in results] == ["gptq", "rtn"]
    assert "cannot run a part of the model by itself" in results[1].reason


@pytest.mark.parametrize("name", ["lut3g16t", "lut3g16th"])
def test_layers_of_one_operator_share_a_table(tmp_path, name):
    model, feeds = graph_models.llama(width=32, hidden=48)
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "samples.npz", **{key: np.concatenate([array] * 3) for key, array in feeds.items()})
    options = {"head": "float", "embedding": "float", "calibration": tmp_path / "samples.npz"}
    for tune in (0, 2):
        out = tmp_path / f"out{tune}"
        qxcompiler.compile(tmp_path / "model.onnx", "cpu-x86", out, weights=name, tune=tune, **options)
        operators = [node.op_type for node in onnx.load(out / "model.onnx").graph.node if node.domain == "qxc"]
        linear = [operator for operator in operators if operator != "Hadamard"]
        assert linear == ["MatMulLut3", "MatMulLut3", "SwiGluLut3", "MatMulLut3"] * 2


def test_a_table_for_several_is_fitted_to_all_of_them():
    torch.manual_seed(0)
    fmt = parse_format("lut2g16t")
    parts = [torch.randn(16, 32), 3 * torch.rand(24, 32)]
    whole = rtn(torch.cat(parts), fmt, None)
    assert torch.equal(whole.rows(slice(16, 40)).decode(), whole.decode()[16:])
    assert torch.equal(whole.rows(slice(16)).grid.stored["codebook"], whole.grid.stored["codebook"])
