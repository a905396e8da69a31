"""Attention and rotary embeddings as ONNX has them since opset 23, in torch."""

from __future__ import annotations

__all__ = ["attention", "rotary_embedding"]

import math

import torch
from torch import Tensor


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    lengths: Tensor | None = None,
    is_causal: int = 0,
    kv_num_heads: int = 0,
    q_num_heads: int = 0,
    qk_matmul_output_mode: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """`Attention` of opset 23 and 24 (ONNX operator specification): the result, and keys and values with the past.

    Args:
        query: [batch, heads, rows, size], or [batch, rows, heads * size] and `q_num_heads`.
        key, value: the same of `kv_num_heads` heads, which divide the queries'.
        mask: added to the scores, or, of bool, false where a key is not attended to.
        past_key, past_value: [batch, heads, tokens, size], which come before.
        lengths: how many keys each batch has (opset 24); none here.
        is_causal: whether a row attends to no later keys; the first row comes after the past.
        kv_num_heads, q_num_heads: of inputs of three dimensions.
        qk_matmul_output_mode: of a fourth output, which there is none of here.
        scale: of the scores; 1 / sqrt(size) by default.
        softcap: c of c * tanh(scores / c); 0 for none.
        softmax_precision: the type that the softmax is computed in; here always that of the inputs.

    Raises:
        NotImplementedError: keys have lengths of their own.
    """
    if lengths is not None:
        raise NotImplementedError("lengths of keys")
    flat = query.ndim == 3
    if flat:
        query, key, value = (
            _by_head(each, heads) for each, heads in ((query, q_num_heads), (key, kv_num_heads), (value, kv_num_heads))
        )
    past = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    shared = query.shape[1] // key.shape[1]
    keys, values = (each.repeat_interleave(shared, 1) if shared > 1 else each for each in (key, value))
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = factor * query @ keys.transpose(-1, -2)
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    if is_causal:
        rows, columns = scores.shape[-2:]
        allowed = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).tril(past)
        scores = scores.masked_fill(~allowed, -torch.inf)
    if mask is not None:
        mask = mask.to(scores.device)
        missing = scores.shape[-1] - mask.shape[-1]  # a shorter mask masks the rest
        if mask.dtype == torch.bool:
            allowed = torch.nn.functional.pad(mask, (0, missing))
            scores = scores.masked_fill(~allowed, -torch.inf)
        else:
            scores = scores + torch.nn.functional.pad(mask, (0, missing), value=-torch.inf)
    empty = (scores == -torch.inf).all(-1, keepdim=True)  # rows without any key give zeros, and no NaN
    result = scores.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0) @ values
    return (result.transpose(1, 2).flatten(2) if flat else result), key, value


def rotary_embedding(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """`RotaryEmbedding` of opset 23 (ONNX operator specification).

    Args:
        x: [batch, heads, rows, size], or [batch, rows, heads * size] and `num_heads`.
        cos, sin: [batch, rows, half], or [positions, half] and `positions`.
        positions: int64 [batch, rows].
        interleaved: whether numbers that are rotated together are neighbours, and not half the rotated part apart.
        num_heads: of an x of three dimensions.
        rotary_embedding_dim: how many of a head's numbers are rotated, the first ones; 0 for all.
    """
    flat = x.ndim == 3
    if flat:
        x = _by_head(x, num_heads)
    rotated = x[..., : rotary_embedding_dim or x.shape[-1]]
    if positions is not None:
        cos, sin = (each.to(x.device)[positions.to(x.device)] for each in (cos, sin))
    cos, sin = (each.to(x.device).unsqueeze(1)[..., : rotated.shape[-1] // 2] for each in (cos, sin))
    first, second = (rotated[..., ::2], rotated[..., 1::2]) if interleaved else rotated.chunk(2, -1)
    parts = first * cos - second * sin, second * cos + first * sin
    turned = torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)
    y = torch.cat([turned, x[..., rotated.shape[-1] :]], -1)
    return y.transpose(1, 2).flatten(2) if flat else y


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[batch, heads, rows, size] of [batch, rows, heads * size]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)
