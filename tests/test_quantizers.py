from __future__ import annotations

import itertools

import pytest
import torch

from qxcompiler.calibration.statistics import InputStatistics
from qxcompiler.errors import UsageError
from qxcompiler.formats import parse_format
from qxcompiler.quantizers import QUANTIZERS, find_quantizer
from qxcompiler.quantizers.gptq import gptq
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


def test_statistics_of_a_stream_are_those_of_the_whole():
    X = correlated(300, 12)
    statistics = InputStatistics.empty(12, CPU)
    for part in X.split([1, 99, 0, 200]):
        statistics.add(part)
    torch.testing.assert_close(statistics.second_moment, X.T @ X / 300, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(statistics.mean, X.mean(0), rtol=1e-4, atol=1e-5)
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


@pytest.mark.parametrize("spec", ["int3g16a", "int4", "lut3g32", "lut2g16t", "ternaryg16", "mxfp4"])
def test_gptq_is_optimal_brain_quantization_in_order(spec):
    torch.manual_seed(4)
    X = correlated(400, 150)  # longer than one block of columns
    weight, fmt, statistics = torch.randn(6, 150), parse_format(spec), statistics_of(X)
    same = gptq(weight, fmt, statistics).codes == naive_gptq(weight, fmt, statistics)
    assert same.float().mean() > 0.97  # a tie broken otherwise changes what follows in its row


@pytest.mark.parametrize("spec", ["int3g32a", "int2", "lut3g32", "nf4g64", "int8g64", "ternaryg32", "mxfp4"])
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
    first, second = (find_quantizer(name)(weight, fmt, None) for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    assert float((first.decode() - weight).norm() / weight.norm()) < 0.2


def test_an_unknown_quantizer_is_refused():
    with pytest.raises(UsageError, match=r"choose one of rtn, gptq"):
        find_quantizer("magic")
