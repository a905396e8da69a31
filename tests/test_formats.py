from __future__ import annotations

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qxcompiler.errors import UsageError
from qxcompiler.formats import (
    E2M1_VALUES,
    E8M0_VALUES,
    CodebookGrid,
    MxFormat,
    MxGrid,
    QuantizedWeight,
    Scheme,
    parse_format,
)
from qxcompiler.formats.codebook import normal_float_levels, weighted_kmeans

SPECS = [
    *(f"int{bits}{group}{a}" for bits in (2, 3, 4, 5, 6, 8) for group in ("", "g16", "g128") for a in ("", "a")),
    *(f"lut{bits}{group}{t}" for bits in (2, 3, 4) for group in ("", "g32") for t in ("", "t")),
    "nf4g64",
    "ternary",
    "ternaryg64",
    "mxfp4",
    "int3g16s8",
    "int4g32as8",
    "int4g32e8",
    "lut3g32s8",
    "lut2g16ts8",
    "nf4g16e8",
    "ternaryg16s8",
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
    "spec",
    [
        "",
        "int7",
        "int3g100",
        "int3g128t",
        "lut5",
        "lut3a",
        "nf3",
        "ternaryg64t",
        "mxfp4g32",
        "mxfp4s8",
        "int3g32s8a",
        "mxfp6",
        "INT3",
        "int3 ",
        "lut3g128/a16",
    ],
)
def test_other_names_are_refused(spec):
    with pytest.raises(UsageError, match="not a weight format"):
        parse_format(spec)


@pytest.mark.parametrize("spec", ["int4g32/a16", "lut3/a8", "mxfp4/a32", "ternary/a8", "nf4g64"])
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
def test_values_stay_near_and_scales_are_as_stored(spec, rows, columns, magnitude, seed):
    torch.manual_seed(seed)
    fmt = parse_format(spec)
    weight = magnitude * torch.randn(rows, columns)
    grid = fmt.fit(weight, torch.rand(columns))
    decoded = QuantizedWeight(grid, grid.encode(weight, slice(None))).decode()
    stored = grid.stored
    scales = stored["scales"].double()
    if "row_scales" in stored:
        assert stored["scales"].dtype == torch.uint8 and stored["row_scales"].dtype == torch.float16
        scales = scales * stored["row_scales"].double() / 256
    elif stored["scales"].dtype == torch.uint8:  # E8M0
        scales = torch.exp2(scales - 127)
    assert torch.equal(grid.scales, scales.float())
    assert torch.equal(grid.scales, fmt.grid(columns, stored).scales)
    assert decoded.isfinite().all()
    # never further than a whole group's range, whatever the clipping search and float16 made of it
    assert (decoded - weight).abs().max() <= 2 * weight.abs().max() + 2.0**-14


def test_zero_weights_stay_zero_where_zero_is_a_value():
    for spec in ("int3g16", "int3g16a", "int8", "ternaryg16", "mxfp4"):
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


def test_of_equal_entries_only_the_first_is_used():
    entries = torch.tensor([[-1.0, 0.0, 0.0, 2.0]])
    grid = CodebookGrid(parse_format("lut2t"), 5, torch.ones(1, 1), entries)
    assert grid.encode(torch.tensor([[-0.6, -0.4, 0.4, 0.9, 1.1]]), slice(None)).tolist() == [[0, 1, 1, 1, 3]]


@settings(max_examples=100, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.floats(-4, 4, width=16), st.floats(0.125, 8, width=16)), min_size=1, max_size=6),
    rest=st.integers(0, 1),
)
def test_the_ternary_scale_is_the_best_of_all(pairs, rest):
    """Brute force over every assignment of -1, 0, 1 in the first group, each with its least-squares scale."""
    first = torch.tensor(pairs, dtype=torch.double)
    filler = torch.zeros(16 - len(pairs), 2, dtype=torch.double)
    w, h = torch.cat([first, filler, torch.full((rest * 3, 2), 7.0, dtype=torch.double)]).T.float()
    grid = parse_format("ternaryg16").fit(w[None], h)
    codes = grid.encode(w[None], slice(None))
    assert codes.max() < 3

    (w, h), assignments = first.T, torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=len(pairs)))).double()
    scales = (assignments * h * w).sum(1) / (assignments.square() * h).sum(1).clamp(min=1e-9)
    errors = (h * (w - scales[:, None] * assignments).square()).sum(1)
    found = (h * (w - grid.decode(codes, slice(None))[0, : len(w)].double()).square()).sum()
    # the scale is rounded to float16: relative 2**-11, and that squared is what the best scale can lose
    norm = (h * w.square()).sum()
    assert errors.min() - 1e-6 * norm <= found <= errors.min() + 2.0**-20 * norm + 1e-12


def test_ternary_without_groups_has_one_scale_a_row():
    torch.manual_seed(11)
    grid = parse_format("ternary").fit(torch.randn(3, 100), torch.ones(100))
    assert grid.scales.shape == (3, 1)
    assert grid.stored["codebook"].tolist() == [[-1, 0, 1, 1]]


# MX specification 1.0, section 5.3.3, without the sign
FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def mx_grid(rows, columns, exponent=0):
    scales = torch.full((rows, -(-columns // 32)), 2.0**exponent)
    return MxGrid(MxFormat(), columns, scales)


@pytest.mark.parametrize("exponent", [-125, -3, 0, 125])
def test_fp4_codes_stand_for_the_specifications_values(exponent):
    grid = mx_grid(1, 16, exponent)
    codes = torch.arange(16, dtype=torch.uint8)[None]
    decoded = grid.decode(codes, slice(None))
    assert decoded.tolist() == [[2.0**exponent * value for value in (*FP4, *(-v for v in FP4))]]
    assert torch.equal(grid.encode(decoded, slice(None)), codes)  # of 0 and -0 too


def test_fp4_ties_go_to_the_even_code_and_what_is_beyond_saturates():
    values = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0, 1e30, torch.inf]
    codes = [0, 2, 2, 4, 4, 6, 6, 7, 7, 7]
    encoded = mx_grid(2, 10).encode(torch.tensor([values, [-v for v in values]]), slice(None))
    assert encoded.tolist() == [codes, [code + 8 for code in codes]]


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.floats(-8, 8, width=16), min_size=1, max_size=20), exponent=st.integers(-120, 120))
def test_fp4_rounds_as_the_specification_says(values, exponent):
    """Against a search of all codes: the nearest, of two equally near the even one; the sign is that of the value."""
    scaled = torch.tensor([values], dtype=torch.float32) * 2.0**exponent
    for value, code in zip(
        values, mx_grid(1, len(values), exponent).encode(scaled, slice(None))[0].tolist(), strict=True
    ):
        best = min(range(8), key=lambda c: (abs(abs(value) - FP4[c]), c % 2))
        assert code == best + 8 * (math.copysign(1, value) < 0)


def test_fp4_and_e8m0_are_those_of_ml_dtypes():
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16).float()
    values = every[every.abs() <= 6]
    codes = mx_grid(1, len(values)).encode(values[None], slice(None))[0]
    expected = values.numpy().astype(ml_dtypes.float4_e2m1fn)
    np.testing.assert_array_equal(codes.numpy(), expected.view(np.uint8))
    np.testing.assert_array_equal(
        E2M1_VALUES, np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(float)
    )
    np.testing.assert_array_equal(
        E8M0_VALUES, np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(float)
    )


def test_mx_exponents_are_the_specifications_or_a_better_neighbour():
    """Brute force: of floor(log2(max)) - 2 and its neighbours, the least weighted error; on a tie the first."""
    torch.manual_seed(12)
    weight = torch.randn(40, 100) * torch.exp2(torch.randint(-8, 9, (40, 1)))
    weight[0] = 0
    weight[1, :32] = torch.tensor([6.0] + 31 * [0.0])  # exact as the specification has it
    weight[2, :32] = torch.tensor([8 - 2.0**-20] + 31 * [1.0])  # nearer to 2 * 4 than to 6
    weight[3, :32] = torch.tensor([1.0] + 31 * [0.0])  # exact with any
    importance = torch.rand(100)
    scales = MxFormat().fit(weight, importance).scales
    chosen = set()
    for row, group in itertools.product(range(1, 40), range(4)):
        columns = slice(32 * group, 32 * group + 32)
        w = weight[row, columns]
        exponent = math.floor(math.log2(float(w.abs().max()))) - 2
        errors = {}
        for step in (0, 1, -1):
            grid = mx_grid(1, len(w), exponent + step)
            decoded = grid.decode(grid.encode(w[None], slice(None)), slice(None))
            errors[step] = float((importance[columns] * (decoded - w).double().square()).sum())
        best = min(errors, key=lambda step: (errors[step], step != 0))
        assert float(scales[row, group]) == 2.0 ** (exponent + best), (row, group)
        chosen.add(best)
    assert chosen == {-1, 0, 1}
    assert scales[1, 0] == 1
    assert scales[2, 0] == 2
    assert scales[3, 0] == 0.25


def test_mx_decodes_to_normal_finite_numbers_whatever_the_weight():
    weight = torch.tensor([[0.0], [1e-45], [2.0**-126], [3.4e38], [-3.4e38]]).repeat(1, 32)
    grid = MxFormat().fit(weight, torch.ones(32))
    assert 2 <= int(grid.stored["scales"].min()) <= int(grid.stored["scales"].max()) <= 252
    decoded = grid.decode(grid.encode(weight, slice(None)), slice(None))
    torch.testing.assert_close(decoded[3:], weight[3:], rtol=0.25, atol=0)
    every = grid.decode(torch.arange(16, dtype=torch.uint8).repeat(5, 2), slice(None))
    assert every.isfinite().all()
    assert (every[every != 0].abs() >= torch.finfo(torch.float32).tiny).all()


def test_groups_cover_all_columns():
    for spec, length in itertools.product(("int3g16", "int3"), (1, 15, 16, 17, 100)):
        fmt = parse_format(spec)
        groups = fmt.group_of(length)
        assert int(groups[-1]) + 1 == fmt.groups(length)
        assert groups.bincount().max() <= fmt.group_length(length)
