from __future__ import annotations

import itertools
import math
import pickle

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qxcompiler.errors import UsageError
from qxcompiler.formats import (
    E8M0_VALUES,
    MX_FORMATS,
    SMALL_FLOATS,
    CodebookGrid,
    QuantizedWeight,
    Scheme,
    parse_format,
)
from qxcompiler.formats.codebook import binned, normal_float_levels, weighted_kmeans

SPECS = [
    *(f"int{bits}{group}{a}" for bits in (2, 3, 4, 5, 6, 8) for group in ("", "g16", "g128") for a in ("", "a")),
    *(f"lut{bits}{group}{t}" for bits in (2, 3, 4) for group in ("", "g32") for t in ("", "t")),
    "nf4g64",
    "ternary",
    "ternaryg64",
    *MX_FORMATS,
    "fp8e4m3",
    "fp8e4m3g128",
    "fp8e5m2g16",
    "int3g16s8",
    "int4g32as8",
    "int4g32e8",
    "lut3g32s8",
    "lut2g16ts8",
    "nf4g16e8",
    "ternaryg16s8",
    "fp8e4m3g32s8",
    "fp8e5m2g64e8",
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


@pytest.mark.parametrize("spec", SPECS)
def test_a_copy_is_the_same_format(spec):
    """Also where a field holds NaN."""
    fmt = parse_format(spec)
    copied = pickle.loads(pickle.dumps(fmt))
    assert copied == fmt and hash(copied) == hash(fmt)
    assert copied.name == spec and copied.operator_suffix == fmt.operator_suffix


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
        "mxfp6e4m3",
        "mxfp4e2m1",
        "mxint4",
        "mxint8s8",
        "fp8g128",
        "fp8e4m3g128a",
        "fp6e2m3g32",
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
    nearest = (every - weight[..., None]).abs().nan_to_num(torch.inf).amin(-1)
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
    for spec in ("int3g16", "int3g16a", "int8", "ternaryg16", "fp8e4m3g16", *MX_FORMATS):
        grid = parse_format(spec).fit(torch.zeros(3, 32), torch.ones(32))
        assert not grid.decode(grid.encode(torch.zeros(3, 32), slice(None)), slice(None)).any()


def test_weights_beyond_float16_scales_are_refused():
    for spec in ("int3g16", "lut3g16", "fp8e4m3g16"):
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


def test_clipping_does_not_depend_on_the_rows_searched_together():
    torch.manual_seed(0)
    weight, importance, fmt = torch.randn(300, 1024), torch.rand(1024), parse_format("int3g128a")
    whole = fmt.fit(weight, importance)
    first, rest = fmt.fit(weight[:7], importance), fmt.fit(weight[7:], importance)
    assert torch.equal(whole.scales, torch.cat([first.scales, rest.scales]))
    assert torch.equal(whole.zeros, torch.cat([first.zeros, rest.zeros]))


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


def test_a_table_for_many_weights_is_that_of_all_of_them():
    """They are sorted by bins of 1/64: entries, integers, move by no more than that."""
    torch.manual_seed(0)
    points = (40 * torch.randn(64, 256)).clamp(-127, 127)
    points[0, :2] = torch.tensor([-127.0, 127.0])
    mass = torch.rand(64, 256) + 0.01
    means, masses = binned(points, mass)
    assert (means.diff() > 0).all() and means.shape[1] < points.numel()
    torch.testing.assert_close(masses.sum(), mass.double().sum())
    torch.testing.assert_close((masses * means).sum(), (mass.double() * points).sum(), rtol=1e-6, atol=1e-3)
    exact = weighted_kmeans(points.view(1, -1), mass.view(1, -1), 8)
    assert (weighted_kmeans(means, masses, 8) - exact).abs().max() < 0.1


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
ML_DTYPES = {
    "mxfp4": ml_dtypes.float4_e2m1fn,
    "mxfp6e2m3": ml_dtypes.float6_e2m3fn,
    "mxfp6e3m2": ml_dtypes.float6_e3m2fn,
    "mxfp8e4m3": ml_dtypes.float8_e4m3fn,
    "mxfp8e5m2": ml_dtypes.float8_e5m2,
}
MX_FLOATS = list(ML_DTYPES)


def mx_grid(rows, columns, exponent=0, name="mxfp4"):
    scales = torch.full((rows, -(-columns // 32)), 2.0**exponent)
    return MX_FORMATS[name].with_scales(columns, scales)


def finite_elements(name):
    """Of ml_dtypes, by code; None for infinity and NaN."""
    dtype = ML_DTYPES[name]
    values = np.arange(2 ** MX_FORMATS[name].bits).astype(np.uint8).view(dtype).astype(float)
    return [float(value) if np.isfinite(value) else None for value in values]


def test_fp4_codes_stand_for_the_specifications_values():
    assert finite_elements("mxfp4") == [*FP4, *(-v for v in FP4)]
    assert mx_grid(1, 16).decode(torch.arange(16, dtype=torch.uint8)[None], slice(None)).tolist() == [
        finite_elements("mxfp4")
    ]


@pytest.mark.parametrize("name", MX_FLOATS)
@pytest.mark.parametrize("place", ["lowest", "one", "highest"])
def test_float_codes_stand_for_the_specifications_values(name, place):
    lowest, highest = MX_FORMATS[name].scale_exponents
    exponent = {"lowest": lowest, "one": 0, "highest": highest}[place]
    elements = finite_elements(name)
    codes = torch.tensor([[code for code, value in enumerate(elements) if value is not None]]).to(torch.uint8)
    grid = mx_grid(1, codes.numel(), exponent, name)
    decoded = grid.decode(codes, slice(None))
    expected = torch.tensor([value for value in elements if value is not None], dtype=torch.double) * 2.0**exponent
    assert torch.equal(decoded[0].double(), expected)
    assert (decoded[decoded != 0].abs() >= torch.finfo(torch.float32).tiny).all()
    assert torch.equal(grid.encode(decoded, slice(None)), codes)  # of 0 and -0 too


def test_fp4_ties_go_to_the_even_code_and_what_is_beyond_saturates():
    values = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0, 1e30, torch.inf]
    codes = [0, 2, 2, 4, 4, 6, 6, 7, 7, 7]
    encoded = mx_grid(2, 10).encode(torch.tensor([values, [-v for v in values]]), slice(None))
    assert encoded.tolist() == [codes, [code + 8 for code in codes]]


@pytest.mark.parametrize(
    ("name", "largest"),
    [("mxfp4", 6), ("mxfp6e2m3", 7.5), ("mxfp6e3m2", 28), ("mxfp8e4m3", 448), ("mxfp8e5m2", 57344)],
)
def test_floats_saturate_at_the_specifications_largest(name, largest):
    """Not to infinity or NaN, which E5M2 and E4M3 have beyond it."""
    values = torch.tensor([[largest, largest * 1.1, 1e30, torch.inf]])
    grid = mx_grid(2, 4, 0, name)
    decoded = grid.decode(grid.encode(torch.cat([values, -values]), slice(None)), slice(None))
    assert decoded.tolist() == [[largest] * 4, [-largest] * 4]


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(MX_FLOATS),
    values=st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=20),
    magnitude=st.integers(-12, 1),
    exponent=st.integers(-80, 80),
)
def test_floats_round_as_the_specification_says(name, values, magnitude, exponent):
    """Against a search of all codes: the nearest, of two equally near the even one; the sign is that of the value."""
    elements = finite_elements(name)
    sign = len(elements) // 2
    largest = max(value for value in elements if value is not None)
    values = [value * largest * 2.0**magnitude for value in values]
    scaled = torch.tensor([values], dtype=torch.float32) * 2.0**exponent
    codes = mx_grid(1, len(values), exponent, name).encode(scaled, slice(None))[0].tolist()
    for value, code in zip((scaled[0] / 2.0**exponent).tolist(), codes, strict=True):
        finite = (c for c in range(sign) if elements[c] is not None)
        best = min(finite, key=lambda c: (abs(abs(value) - elements[c]), c % 2))
        assert code == best + sign * (math.copysign(1, value) < 0)


@pytest.mark.parametrize("name", MX_FLOATS)
def test_floats_are_those_of_ml_dtypes(name):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16).float()
    values = every[every.abs() <= max(value for value in finite_elements(name) if value is not None)]
    codes = mx_grid(1, len(values), 0, name).encode(values[None], slice(None))[0]
    np.testing.assert_array_equal(codes.numpy(), values.numpy().astype(ML_DTYPES[name]).view(np.uint8))
    (element,) = (each for each in SMALL_FLOATS if each.code_type == MX_FORMATS[name].code_type)
    expected = np.arange(2**element.bits).astype(np.uint8).view(ML_DTYPES[name]).astype(float)
    np.testing.assert_array_equal(element.values, expected)  # infinity and NaN too


def test_e8m0_is_that_of_ml_dtypes():
    np.testing.assert_array_equal(
        E8M0_VALUES, np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(float)
    )


def test_mxint8_counts_64ths_of_the_specifications_scale():
    """Section 5.3.4: a two's complement times 2**-6, so that 1 in the group's largest octave is code 64."""
    weight = torch.tensor([[1.0, -1.0, 127 / 64, -2 + 1 / 64, 1 / 64, 1 / 128, 3 / 128, 0.0] + 24 * [0.0]])
    grid = MX_FORMATS["mxint8"].fit(weight, torch.ones(32))
    assert grid.stored["scales"].tolist() == [[127 - 6]]
    codes = grid.encode(weight, slice(None)).int() - 128
    assert codes[0, :8].tolist() == [64, -64, 127, -127, 1, 0, 2, 0]  # ties to even
    assert torch.equal(grid.decode(codes.add(128).to(torch.uint8), slice(None))[0, :5], weight[0, :5])


@pytest.mark.parametrize("name", MX_FORMATS)
def test_mx_exponents_are_the_specifications_or_a_better_neighbour(name):
    """Brute force: of floor(log2(max)) less that of the largest element, and its neighbours, the least weighted error;
    on a tie the first.
    """
    torch.manual_seed(12)
    fmt = MX_FORMATS[name]
    largest = 127 if name == "mxint8" else max(value for value in finite_elements(name) if value is not None)
    of_largest = math.floor(math.log2(largest))
    weight = torch.randn(20, 100) * torch.exp2(torch.randint(-8, 9, (20, 1)))
    weight[0] = 0
    weight[1, :32] = torch.tensor([largest] + 31 * [0.0])  # exact as the specification has it
    weight[2, :32] = torch.tensor([2.0 ** (of_largest + 1) * (1 - 2.0**-20)] + 31 * [1.0])  # beyond the largest
    importance = torch.rand(100)
    scales = fmt.fit(weight, importance).scales
    for row, group in itertools.product(range(1, 20), range(4)):
        columns = slice(32 * group, 32 * group + 32)
        w = weight[row, columns]
        exponent = math.floor(math.log2(float(w.abs().max()))) - of_largest
        errors = {}
        for step in (0, 1, -1):
            grid = mx_grid(1, len(w), exponent + step, name)
            decoded = grid.decode(grid.encode(w[None], slice(None)), slice(None))
            errors[step] = float((importance[columns] * (decoded - w).double().square()).sum())
        best = min(errors, key=lambda step: (errors[step], step != 0))
        # sums in float32 tell errors apart that differ by more than this
        chosen = math.log2(float(scales[row, group])) - exponent
        assert chosen in errors and errors[chosen] <= errors[best] * (1 + 1e-4), (row, group)
    assert scales[1, 0] == 1
    assert name != "mxfp4" or scales[2, 0] == 2


def test_mxfp4_takes_each_neighbour_somewhere():
    torch.manual_seed(12)
    weight = torch.randn(40, 96)
    weight[0, :32] = torch.tensor([8 - 2.0**-20] + 31 * [1.0])  # nearer to 2 * 4 than to 6
    weight[1, :32] = torch.tensor([4.0] + 31 * [0.3])
    importance = torch.rand(96)
    importance[0] = 1e-3
    exponents = torch.floor(torch.log2(weight.view(40, 3, 32).abs().amax(-1))) - 2
    chosen = torch.log2(MX_FORMATS["mxfp4"].fit(weight, importance).scales) - exponents
    assert set(chosen.flatten().tolist()) == {-1, 0, 1}


@pytest.mark.parametrize("name", MX_FORMATS)
def test_mx_decodes_to_normal_finite_numbers_whatever_the_weight(name):
    weight = torch.tensor([[0.0], [1e-45], [2.0**-126], [1.6e38], [-1.6e38]]).repeat(1, 32)
    fmt = MX_FORMATS[name]
    grid = fmt.fit(weight, torch.ones(32))
    decoded = grid.decode(grid.encode(weight, slice(None)), slice(None))
    torch.testing.assert_close(decoded[3:], weight[3:], rtol=0.25, atol=0)
    codes = torch.arange(2**fmt.bits, dtype=torch.uint8)
    if name in ML_DTYPES:
        codes = codes[[value is not None for value in finite_elements(name)]]
    for scales in grid.scales:
        every = fmt.with_scales(codes.numel(), scales.expand(1, -(-codes.numel() // 32))).decode(
            codes[None], slice(None)
        )
        assert every.isfinite().all()
        assert (every[every != 0].abs() >= torch.finfo(torch.float32).tiny).all()


def test_float8_takes_the_scale_that_loses_least_of_an_octave():
    torch.manual_seed(4)
    weight, importance = torch.randn(6, 64), torch.rand(64)
    fmt = parse_format("fp8e4m3g32")
    found = fmt.fit(weight, importance)

    def errors(factor):
        stored = {"scales": (factor * weight.view(6, 2, 32).abs().amax(-1) / 448).half()}
        grid = fmt.grid(64, stored)
        decoded = grid.decode(grid.encode(weight, slice(None)), slice(None))
        return ((decoded - weight).square() * importance).view(6, 2, 32).sum(-1), stored["scales"].float()

    tried = [errors(2.0 ** (step / 4)) for step in range(4)]
    best = torch.stack([error for error, _ in tried]).argmin(0)
    assert torch.equal(found.scales, torch.stack([scales for _, scales in tried]).gather(0, best[None])[0])
    assert len(best.unique()) > 1


def test_groups_cover_all_columns():
    for spec, length in itertools.product(("int3g16", "int3"), (1, 15, 16, 17, 100)):
        fmt = parse_format(spec)
        groups = fmt.group_of(length)
        assert int(groups[-1]) + 1 == fmt.groups(length)
        assert groups.bincount().max() <= fmt.group_length(length)
