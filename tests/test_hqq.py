"""HQQ: each half of a step against a reference, and what it promises of the whole."""

from __future__ import annotations

from dataclasses import replace

import graph_models
import numpy as np
import pytest
import torch

import qxcompiler
from qxcompiler.formats import parse_format
from qxcompiler.quantizers import find_quantizer
from qxcompiler.quantizers.hqq import fitted, hqq, lp_error, shrink

FORMATS = [
    "int2g16a",
    "int3g32a",
    "int4g64",
    "int4",
    "int3g32as8",
    "int4g16ae8",
    "lut3g32",
    "lut2g16t",
    "nf4g32",
    "ternaryg16",
]


def heavy_tailed(rows, columns, seed=0):
    draws = np.random.default_rng(seed)
    return torch.from_numpy((0.02 * draws.standard_t(4, (rows, columns))).astype(np.float32))


def test_shrinking_is_nearly_the_minimum():
    """Of |e|^p / p + β (e - x)² / 2: exact for p = 1, and for large errors; small ones vanish in both."""
    candidates = torch.linspace(0, 5, 500_001, dtype=torch.double)
    x = torch.tensor([0.01, 0.1, 0.3, 2.0, 3.0, 4.5], dtype=torch.double)
    for p, beta in ((1.0, 1.0), (1.0, 4.0), (0.7, 1.0), (0.7, 4.0)):
        cost = candidates.pow(p) / p + beta / 2 * (candidates - x[:, None]) ** 2
        exact = candidates[cost.argmin(1)]
        found = shrink(x, beta, p)
        assert torch.equal(shrink(-x, beta, p), -found)
        large = (x > 2.5 / beta**0.5) if p < 1 else torch.ones(len(x), dtype=bool)
        torch.testing.assert_close(found[large], exact[large], rtol=0.05 if p < 1 else 1e-4, atol=1e-4)
        assert not found[x < 0.15].any()
        assert not exact[x < 0.15].any()
    assert torch.equal(shrink(torch.zeros(3), 1.0), torch.zeros(3))


@pytest.mark.parametrize("spec", ["int3g16a", "int2a"])
def test_the_zero_point_is_the_best_whole_number(spec):
    fmt, W = parse_format(spec), heavy_tailed(5, 40) + 0.01
    grid = fmt.fit(W, torch.ones(40))
    codes = grid.encode(W, slice(None))
    target = W + 0.005 * heavy_tailed(5, 40, seed=1)
    found = fitted(grid, codes, fmt.grouped(target))

    def error(zeros):
        moved = replace(grid, zeros=torch.full_like(grid.zeros, zeros))
        return fmt.grouped((target - moved.decode(codes, slice(None))).square()).sum(-1)

    errors = torch.stack([error(zeros) for zeros in range(fmt.largest_code + 1)])
    assert torch.equal(found.zeros, errors.argmin(0).float())


@pytest.mark.parametrize("spec", ["int3g16a", "int4g16", "lut3g16", "nf4g16"])
def test_the_scale_is_that_of_least_squares(spec):
    fmt, W = parse_format(spec), heavy_tailed(4, 40)  # the last group is shorter
    grid = fmt.fit(W, torch.ones(40))
    codes = grid.encode(W, slice(None))
    target = 1.1 * W
    found = fitted(grid, codes, fmt.grouped(target))
    levels = found.decode(codes, slice(None)) / found.column_scales(slice(None))
    for row in range(4):
        for group, columns in enumerate((slice(0, 16), slice(16, 32), slice(32, 40))):
            a, b = levels[row, columns, None].double(), target[row, columns, None].double()
            exact = float(torch.linalg.lstsq(a, b).solution)
            assert float(found.scales[row, group]) == pytest.approx(exact, rel=1e-3)  # a float16


@pytest.mark.parametrize("spec", [*FORMATS, "mxfp4"])
def test_the_objective_never_rises(spec):
    fmt, W = parse_format(spec), heavy_tailed(24, 200)
    before = fmt.fit(W, torch.ones(200))
    quantized = hqq(W, fmt, None)
    was, now = lp_error(W, before), lp_error(W, quantized.grid)
    assert bool((now <= was * (1 + 1e-5)).all())
    stored = fmt.grid(200, quantized.grid.stored)
    assert torch.equal(stored.decode(quantized.codes, slice(None)), quantized.decode())
    if fmt.learnable and spec != "int4g16ae8":  # powers of two are coarse
        assert float(now.sum()) < 0.985 * float(was.sum())


def test_weights_of_any_size_keep_their_codes():
    W = heavy_tailed(8, 64)
    fmt = parse_format("int3g32a")
    codes = hqq(W, fmt, None).codes
    for factor in (2.0**-4, 2.0**8):
        assert torch.equal(hqq(W * factor, fmt, None).codes, codes)
    zero = hqq(torch.zeros(4, 64), fmt, None)
    assert not zero.decode().any()


def test_a_compile_without_samples_takes_it(tmp_path):
    proto, _ = graph_models.mlp((64, 128, 64))
    assert not find_quantizer("hqq").needs
    report = qxcompiler.compile(proto, "cpu-x86", tmp_path / "out", weights="int4g32a", quantizer="hqq")
    assert {site.quantizer for site in report.sites} == {"hqq"}
    assert not any("rounded" in warning for warning in report.warnings)
