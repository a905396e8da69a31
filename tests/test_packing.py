from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qxcompiler.formats import MX_FORMATS, QuantizedWeight, parse_format
from qxcompiler.packing import bits_per_weight, pack, packed_bytes, unpack
from qxcompiler.packing.tile16 import FIELDS

SPECS = [
    "int2g16",
    "int3g128a",
    "int4",
    "int5g32a",
    "int6",
    "int8g64a",
    "lut2g128",
    "lut3g32t",
    "lut4",
    "nf4g16",
    "ternaryg64",
    *MX_FORMATS,
    "fp8e4m3g64",
]


def quantized(spec, rows, columns, seed=0):
    torch.manual_seed(seed)
    fmt = parse_format(spec)
    grid = fmt.fit(torch.randn(rows, columns), torch.ones(columns))
    return QuantizedWeight(grid, torch.randint(0, 2**fmt.bits, (rows, columns), dtype=torch.uint8))


@settings(max_examples=60, deadline=None)
@given(spec=st.sampled_from(SPECS), rows=st.integers(1, 40), columns=st.integers(1, 100), seed=st.integers(0, 99))
def test_codes_come_back_and_every_byte_is_counted(spec, rows, columns, seed):
    weight = quantized(spec, rows, columns, seed)
    packed = pack(weight)
    back = unpack(packed)
    assert torch.equal(back.codes, weight.codes)
    np.testing.assert_array_equal(back.decode(), weight.decode())  # NaN too
    assert sum(tensor.nbytes for tensor in packed.tensors.values()) == packed_bytes(weight.format, rows, columns)


@pytest.mark.parametrize("bits", FIELDS)
def test_fields_hold_every_bit_of_every_code_once(bits):
    places = [
        (field.line, field.line_bit + i, field.step, field.code_bit + i)
        for field in FIELDS[bits]
        for i in range(field.width)
    ]
    assert len(places) == 8 * bits
    assert len({(line, bit) for line, bit, _, _ in places}) == 8 * bits
    assert {(step, bit) for _, _, step, bit in places} == {(q, b) for q in range(8) for b in range(bits)}
    assert all(line < bits and bit < 8 for line, bit, _, _ in places)


def test_three_bits_lie_as_documented():
    """docs/formats.md: row 5, column 32b + 4q + j lies in byte 4*5 + j; t = c6 | c7 << 3 shares the lines' top bits."""
    weight = quantized("int3", 16, 64)
    codes, packed = weight.codes.tolist(), pack(weight).tensors["packed"].numpy().tolist()
    row, block, j = 5, 1, 2
    c = [codes[row][32 * block + 4 * q + j] for q in range(8)]
    t = c[6] | c[7] << 3
    for line in range(3):
        expected = c[2 * line] | c[2 * line + 1] << 3 | (t >> (2 * line) & 3) << 6
        assert packed[0][block][line][4 * row + j] == expected


def test_scales_of_a_tiles_rows_lie_side_by_side():
    weight = quantized("int4g32a", 20, 64)
    tensors = {name: tensor.numpy() for name, tensor in pack(weight).tensors.items()}
    assert tensors["scales"].shape == (2, 2, 16)
    assert tensors["scales"][1, 1, 3] == weight.grid.scales[19, 1]
    assert tensors["zero_points"][0, 1, 7] == weight.grid.stored["zero_points"][7, 1]
    assert not tensors["scales"][1, :, 4:].any()


def test_scales_of_mx_are_bytes_of_e8m0():
    """The exponent of 2 plus 127, for every power of two that a float32 has (MX specification, section 5.4.1)."""
    exponents = torch.arange(-127, 128)
    grid = MX_FORMATS["mxfp4"].with_scales(255 * 32, torch.tensor([[2.0**e for e in exponents.tolist()]]).repeat(17, 1))
    scales = pack(QuantizedWeight(grid, torch.zeros(17, 255 * 32, dtype=torch.uint8))).tensors["scales"].numpy()
    assert scales.dtype == np.uint8
    assert scales[0, :, 3].tolist() == scales[1, :, 0].tolist() == (exponents + 127).tolist()
    assert not scales[1, :, 1:].any()


def test_bits_per_weight_counts_everything():
    # codes + float16 scale and uint8 zero point a group of 128
    assert bits_per_weight(parse_format("int3g128a"), 4096, 4096) == 3 + (16 + 8) / 128
    # codes + scale a group + a table of 8 bytes a row
    assert bits_per_weight(parse_format("lut3g128"), 1536, 1536) == pytest.approx(3 + 16 / 128 + 64 / 1536)
    # codes + a byte a group + a float16 a row
    assert bits_per_weight(parse_format("int3g32s8"), 4096, 4096) == 3 + 8 / 32 + 16 / 4096
    # codes + a byte for 32
    assert bits_per_weight(parse_format("mxfp4"), 4096, 4096) == 4.25
    # codes + scale a group + one table of 4 bytes
    assert bits_per_weight(parse_format("ternaryg64"), 4096, 4096) == 2 + 16 / 64 + 32 / 4096**2
    # 576 inputs are 4.5 groups, and pay for 5
    assert bits_per_weight(parse_format("int3g128"), 576, 576) == 3 + 5 * 16 / 576
    # one row pays for the tile's 16, one column for the block's 32
    assert bits_per_weight(parse_format("int8"), 1, 1) == 16 * 32 * 8 + 16 * 16
