from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qxcompiler.errors import UsageError
from qxcompiler.formats import QuantizedWeight, Scheme, parse_format
from qxcompiler.formats.codebook import normal_float_levels, weighted_kmeans

SPECS = [
    *(f"int{bits}{group}{a}" for bits in (2, 3, 4, 5, 6, 8) for group in ("", "g16", "g128") for a in ("", "a")),
    *(f"lut{bits}{group}{t}" for bits in (2, 3, 4) for group in ("", "g32") for t in ("", "t")),
    "nf4g64",
]

# QLoRA (Dettmers et al. 2023), appendix E
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_a_name_is_its_own_spec(spec):
    assert parse_format(spec).name == spec


@pytest.mark.parametrize(
    "spec", ["", "int7", "int3g100", "int3g128t", "lut5", "lut3a", "nf3", "INT3", "int3 ", "lut3g128/a16"]
)
def test_other_names_are_refused(spec):
    with pytest.raises(UsageError, match="not a weight format"):
        parse_format(spec)


@pytest.mark.parametrize("spec", ["int4g32/a16", "lut3/a8", "nf4g64"])
def test_a_scheme_reads_what_it_writes(spec):
    assert str(Scheme.parse(spec)) == spec


@pytest.mark.parametrize("spec", ["int4g32/a4", "int4g32/", "/a8"])
def test_other_schemes_are_refused(spec):
    with pytest.raises(UsageError):
        Scheme.parse(spec)


@pytest.mark.parametrize("spec", SPECS)
def test_encode_finds_the_nearest_of_all_values(spec):
    torch.manual_seed(0)
    fmt = parse_format(spec)
    weight = torch.randn(5, 70)
    grid = fmt.fit(weight, torch.rand(70))
    codes = grid.encode(weight, slice(None))
    every = torch.stack([grid.decode(torch.full_like(codes, code), slice(None)) for code in range(2**fmt.bits)], dim=-1)
    nearest = (every - weight[..., None]).abs().amin(-1)
    torch.testing.assert_close((grid.decode(codes, slice(None)) - weight).abs(), nearest, rtol=0, atol=1e-6)


@pytest.mark.parametrize("spec", SPECS)
def test_single_columns_encode_as_the_whole(spec):
    torch.manual_seed(1)
    weight = torch.randn(4, 40)
    grid = parse_format(spec).fit(weight, torch.ones(40))
    whole = grid.encode(weight, slice(None))
    columns = torch.tensor([39, 0, 17, 16])
    assert torch.equal(grid.encode(weight[:, columns], columns), whole[:, columns])
    for k in (0, 15, 16, 39):
        assert torch.equal(grid.encode(weight[:, k : k + 1], k), whole[:, k : k + 1])
        assert torch.equal(grid.decode(whole[:, k : k + 1], k), grid.decode(whole, slice(None))[:, k : k + 1])


@settings(max_examples=60, deadline=None)
@given(
    spec=st.sampled_from(SPECS),
    rows=st.integers(1, 6),
    columns=st.integers(1, 80),
    magnitude=st.sampled_from([0.0, 1e-6, 1e-3, 1.0, 1e3]),
    seed=st.integers(0, 1000),
)
def test_values_stay_near_and_scales_are_float16(spec, rows, columns, magnitude, seed):
    torch.manual_seed(seed)
    fmt = parse_format(spec)
    weight = magnitude * torch.randn(rows, columns)
    grid = fmt.fit(weight, torch.rand(columns))
    decoded = QuantizedWeight(grid, grid.encode(weight, slice(None))).decode()
    assert torch.equal(grid.scales, grid.scales.half().float())
    assert decoded.isfinite().all()
    # never further than a whole group's range, whatever the clipping search and float16 made of it
    assert (decoded - weight).abs().max() <= 2 * weight.abs().max() + 2.0**-14


def test_zero_weights_stay_zero_in_integer_formats():
    for spec in ("int3g16", "int3g16a", "int8"):
        grid = parse_format(spec).fit(torch.zeros(3, 32), torch.ones(32))
        assert not grid.decode(grid.encode(torch.zeros(3, 32), slice(None)), slice(None)).any()


def test_weights_beyond_float16_scales_are_refused():
    for spec in ("int3g16", "lut3g16"):
        with pytest.raises(OverflowError):
            parse_format(spec).fit(torch.full((2, 16), 1e9), torch.ones(16))


def test_clipping_is_the_best_of_the_ratios_searched():
    torch.manual_seed(2)
    weight, importance = torch.randn(1, 16) ** 3, torch.rand(16)
    for spec in ("int3", "int3a"):
        fmt = parse_format(spec)
        grid = fmt.fit(weight, importance)

        def error(scale, zero):
            code = torch.clamp(torch.round(weight / scale) + zero, 0, 7)
            return float(((scale * (code - zero) - weight) ** 2 * importance).sum())

        candidates = []
        for step in range(21):
            ratio = 1 - 0.025 * step
            low, high = ratio * float(weight.min()), ratio * float(weight.max())
            scale = (high - low) / 7 if fmt.asymmetric else max(-low / 4, high / 3)
            scale = float(torch.tensor(scale).half())
            candidates.append(error(scale, round(-low / scale) if fmt.asymmetric else 4))
        found = error(float(grid.scales[0, 0]), float(grid.zeros[0, 0]))
        assert found == pytest.approx(min(candidates), rel=1e-4)


def test_normal_float_is_the_papers_table():
    assert normal_float_levels(4) == pytest.approx(NF4, abs=2e-7)


@settings(max_examples=30, deadline=None)
@given(points=st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=9), seed=st.integers(0, 99))
def test_kmeans_ends_in_a_fixed_point_near_the_optimum(points, seed):
    torch.manual_seed(seed)
    x = torch.tensor(points)
    mass = torch.rand(len(points)) + 0.01

    def cost(centres):
        return float((mass * (x[:, None] - centres[None]).square().amin(1)).sum())

    found = weighted_kmeans(x[None], mass[None], 2)[0]
    # the optimal clusters are runs of the sorted points
    order = x.argsort()
    optimum = min(
        cost(torch.stack([(mass[part] * x[part]).sum() / mass[part].sum() for part in (order[:cut], order[cut:])]))
        for cut in range(1, len(points))
    )
    single = cost((mass * x).sum().view(1) / mass.sum())
    assert found[0] <= found[1]
    assert cost(found) <= single + 1e-4
    assert cost(found) >= optimum - 1e-4


def test_kmeans_separates_what_is_separate():
    x = torch.cat([c + 0.01 * torch.randn(20) for c in (-3.0, -1.0, 0.5, 4.0)])[None]
    centres = weighted_kmeans(x, torch.ones_like(x), 4)[0]
    torch.testing.assert_close(centres, torch.tensor([-3.0, -1.0, 0.5, 4.0]), atol=0.02, rtol=0)


def test_a_learned_table_beats_the_uniform_grid_on_bell_shaped_weights():
    torch.manual_seed(3)
    weight = torch.randn(64, 256)

    def error(spec):
        grid = parse_format(spec).fit(weight, torch.ones(256))
        return float((grid.decode(grid.encode(weight, slice(None)), slice(None)) - weight).norm())

    assert error("lut3g128") < error("lut3g128t") < error("int3g128a")


def test_groups_cover_all_columns():
    for spec, length in itertools.product(("int3g16", "int3"), (1, 15, 16, 17, 100)):
        fmt = parse_format(spec)
        groups = fmt.group_of(length)
        assert int(groups[-1]) + 1 == fmt.groups(length)
        assert groups.bincount().max() <= fmt.group_length(length)
