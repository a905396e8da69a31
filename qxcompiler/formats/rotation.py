"""Rotated inputs: Hadamard matrices along K, which spread what sticks out over its neighbours.

`XWᵀ = (XR)(WR)ᵀ` for an orthogonal R. A rotated weight's codes stand for WR, and the activations are rotated as the
model runs (QuIP#, Tseng et al. 2024; QuaRot, Ashkboos et al. 2024). R is block-diagonal, of blocks D H / √n: H is
Sylvester's Hadamard matrix, D holds signs.
"""

from __future__ import annotations

import math

import torch

__all__ = ["LARGEST_BLOCK", "SMALLEST_BLOCK", "block_size", "hadamard", "rotate", "rotate_back", "signs"]

SMALLEST_BLOCK, LARGEST_BLOCK = 8, 64
_SIGNS = 0x243F6A8885A308D3  # a bit a sign, the highest first: the first bits of pi behind the point


def block_size(in_features: int) -> int:
    """The largest power of two that divides K, 64 at most; below 8 it is 1, which leaves the inputs as they are."""
    size = math.gcd(in_features, LARGEST_BLOCK)
    return size if size >= SMALLEST_BLOCK else 1


def signs() -> list[int]:
    """The diagonal of D for the largest block: 64 times 1 or -1. Smaller blocks have the first of them."""
    return [-1 if _SIGNS >> (LARGEST_BLOCK - 1 - place) & 1 else 1 for place in range(LARGEST_BLOCK)]


def hadamard(size: int) -> torch.Tensor:
    """A block D H / √n of R: float32 [n, n], n = 8, 16, 32, 64, with `H[i, j] = (-1)^popcount(i & j)`."""
    H = torch.ones(1, 1)
    while len(H) < size:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return torch.tensor(signs()[:size])[:, None] * H / math.sqrt(size)


def rotate(X: torch.Tensor) -> torch.Tensor:
    """XR, of float32 [..., K]."""
    size = block_size(X.shape[-1])
    return X if size == 1 else _by_block(X, hadamard(size))


def rotate_back(X: torch.Tensor) -> torch.Tensor:
    """XRᵀ, of float32 [..., K]."""
    size = block_size(X.shape[-1])
    return X if size == 1 else _by_block(X, hadamard(size).T)


def _by_block(X: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    return (X.reshape(-1, len(block)) @ block.to(X)).reshape(X.shape)
