"""Codes to bytes in the layout `tile16.v1`, which every kernel reads as it is stored.

A tile holds 16 rows (output features), a block 32 columns (inputs). A block of b-bit codes is b lines of 64 bytes;
byte 4*r + j of a line belongs to row r, and holds bits of the codes of columns 4*q + j, for several steps q of 0..7.
`FIELDS[b]` says which bits of which step's code lie where. So an int32 lane holds four consecutive inputs of one row,
which is what the integer dot-product instructions of x86 and Arm take, and a quarter of a line is four rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir
import torch

from qxcompiler.formats import Format, Grid, QuantizedWeight

__all__ = [
    "BLOCK_COLUMNS",
    "FIELDS",
    "LAYOUT",
    "LINE_BYTES",
    "STEPS",
    "TILE_ROWS",
    "Field",
    "PackedWeight",
    "bits_per_weight",
    "pack",
    "packed_bytes",
    "unpack",
    "unpack_codes",
    "unpack_grid",
]

LAYOUT = "tile16.v1"
TILE_ROWS = 16
BLOCK_COLUMNS = 32
LINE_BYTES = 64
STEPS = 8  # of 4 columns, in a block


class Field(NamedTuple):
    """Where some bits of one step's code lie: bits `code_bit`.. of it at bits `line_bit`.. of its bytes in `line`."""

    step: int
    code_bit: int
    width: int
    line: int
    line_bit: int


_NIBBLES = [Field(q, 0, 4, q // 2, 4 * (q % 2)) for q in range(STEPS)]

FIELDS: dict[int, list[Field]] = {
    2: [Field(q, 0, 2, q // 4, 2 * (q % 4)) for q in range(STEPS)],
    # two codes in the low six bits of each line; the other two codes share the three lines' top bits
    3: [Field(q, 0, 3, q // 2, 3 * (q % 2)) for q in range(6)]
    + [Field(6, 0, 2, 0, 6), Field(6, 2, 1, 1, 6), Field(7, 0, 1, 1, 7), Field(7, 1, 2, 2, 6)],
    4: _NIBBLES,
    5: _NIBBLES + [Field(q, 4, 1, 4, q) for q in range(STEPS)],
    6: _NIBBLES + [Field(q, 4, 2, 4 + q // 4, 2 * (q % 4)) for q in range(STEPS)],
    8: [Field(q, 0, 8, q, 0) for q in range(STEPS)],
}


@dataclass(frozen=True)
class PackedWeight:
    """The tensors of one packed weight; T = ceil(N / 16) tiles, B = ceil(K / 32) blocks, G groups.

    Attributes:
        format: the format of the codes.
        out_features: N.
        in_features: K.
        tensors: what is stored, in memory or in a file, by the operator's input names, in their order:
            `packed`, uint8 [T, B, bits, 64]; `scales` [T, G, 16], float16 or uint8; `row_scales`, float16 [T, 1, 16],
            for two-level scales; `zero_points`, uint8 [T, G, 16], for formats that have them; `codebook`, int8
            [T, 16, 2**bits], or [1, 1, 2**bits] for one a tensor.
    """

    format: Format
    out_features: int
    in_features: int
    tensors: Mapping[str, ir.TensorProtocol]


def _ceil(n: int, step: int) -> int:
    return -(-n // step)


def pack(weight: QuantizedWeight) -> PackedWeight:
    """Pack codes and what decodes them. Rows and columns beyond N and K are zero bytes."""
    N, K = weight.codes.shape
    tiles = _ceil(N, TILE_ROWS)
    arranged = {"packed": _pack_codes(weight.codes, weight.format.bits)}
    for name, tensor in weight.grid.stored.items():
        if name != "codebook":
            arranged[name] = _by_tile(tensor, tiles)
        elif weight.format.codebook_rows(N) == 1:
            arranged[name] = tensor.view(1, 1, -1)
        else:
            arranged[name] = _pad_rows(tensor, tiles).view(tiles, TILE_ROWS, -1)
    tensors = {name: ir.tensor(tensor.cpu().contiguous().numpy()) for name, tensor in arranged.items()}
    return PackedWeight(weight.format, N, K, tensors)


def unpack(packed: PackedWeight) -> QuantizedWeight:
    """The inverse of `pack`."""
    codes = unpack_codes(_tensor(packed, "packed"), packed.out_features, packed.in_features)
    return QuantizedWeight(unpack_grid(packed), codes)


def unpack_grid(packed: PackedWeight) -> Grid:
    """The values that the codes stand for; codes are not read."""
    N = packed.out_features
    tensors = {name: _tensor(packed, name) for name in packed.tensors if name != "packed"}
    stored = {
        name: tensor.view(-1, tensor.shape[-1])[:N] if name == "codebook" else _by_row(tensor, N)
        for name, tensor in tensors.items()
    }
    return packed.format.grid(packed.in_features, stored)


def _tensor(packed: PackedWeight, name: str) -> torch.Tensor:
    return torch.from_numpy(packed.tensors[name].numpy())


def _pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    N, K = codes.shape
    tiles, blocks = _ceil(N, TILE_ROWS), _ceil(K, BLOCK_COLUMNS)
    padded = torch.nn.functional.pad(codes, (0, blocks * BLOCK_COLUMNS - K, 0, tiles * TILE_ROWS - N))
    # [tile, row, block, step, j] -> [step, tile, block, (row, j)]
    by_step = (
        padded.view(tiles, TILE_ROWS, blocks, STEPS, 4).permute(3, 0, 2, 1, 4).reshape(STEPS, tiles, blocks, LINE_BYTES)
    )
    packed = codes.new_zeros(tiles, blocks, bits, LINE_BYTES)
    for field in FIELDS[bits]:
        part = (by_step[field.step] >> field.code_bit) & (2**field.width - 1)
        packed[:, :, field.line] |= part << field.line_bit
    return packed


def unpack_codes(packed: torch.Tensor, out_features: int, in_features: int) -> torch.Tensor:
    """The codes, uint8 [N, K], of packed bytes, uint8 [T, B, bits, 64]."""
    tiles, blocks, bits, _ = packed.shape
    by_step = packed.new_zeros(STEPS, tiles, blocks, LINE_BYTES)
    for field in FIELDS[bits]:
        part = (packed[:, :, field.line] >> field.line_bit) & (2**field.width - 1)
        by_step[field.step] |= part << field.code_bit
    rows = by_step.view(STEPS, tiles, blocks, TILE_ROWS, 4).permute(1, 3, 2, 0, 4)
    return rows.reshape(tiles * TILE_ROWS, blocks * BLOCK_COLUMNS)[:out_features, :in_features]


def _by_tile(per_group: torch.Tensor, tiles: int) -> torch.Tensor:
    """[N, G] -> [T, G, 16]: the 16 rows' numbers of one group lie side by side."""
    return _pad_rows(per_group, tiles).view(tiles, TILE_ROWS, -1).transpose(1, 2).contiguous()


def _by_row(by_tile: torch.Tensor, out_features: int) -> torch.Tensor:
    """[T, G, 16] -> [N, G]."""
    return by_tile.transpose(1, 2).reshape(-1, by_tile.shape[1])[:out_features]


def _pad_rows(tensor: torch.Tensor, tiles: int) -> torch.Tensor:
    return torch.nn.functional.pad(tensor, (0, 0, 0, tiles * TILE_ROWS - tensor.shape[0]))


def packed_bytes(fmt: Format, out_features: int, in_features: int) -> int:
    """What a weight [N, K] takes once packed: codes, scales, zero points, codebooks and padding, in bytes."""
    tiles, groups = _ceil(out_features, TILE_ROWS), fmt.groups(in_features)
    codes = tiles * _ceil(in_features, BLOCK_COLUMNS) * fmt.bits * LINE_BYTES
    per_row = groups * (fmt.scale_type.group_bytes + fmt.has_zero_points) + fmt.scale_type.row_bytes
    stored_rows = fmt.codebook_rows(out_features)
    tables = stored_rows if stored_rows <= 1 else tiles * TILE_ROWS
    return codes + tiles * TILE_ROWS * per_row + (tables << fmt.bits)


def bits_per_weight(fmt: Format, out_features: int, in_features: int) -> float:
    """Bits a weight of a packed matrix [N, K], everything counted."""
    return 8 * packed_bytes(fmt, out_features, in_features) / (out_features * in_features)
