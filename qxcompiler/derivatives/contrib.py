"""What onnxruntime's own operators compute (domain `com.microsoft`), in torch, as `operators.py` does the standard's.

Source: onnxruntime's documentation of its contrib operators, docs/ContribOperators.md.
"""

from __future__ import annotations

__all__ = ["CONTRIB_OPERATORS"]

import torch
from torch import Tensor
from torch.nn import functional

from qxcompiler.derivatives.attention import attention, rotary_embedding
from qxcompiler.derivatives.operators import Operator, rms_norm


def _skip_layer_norm(
    x: Tensor,
    skip: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    bias: Tensor | None = None,
    epsilon: float = 1e-12,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = x + skip if bias is None else x + skip + bias
    mean = total.mean(-1, keepdim=True)
    inverse = (total.var(-1, keepdim=True, correction=0) + epsilon).rsqrt()
    y = (total - mean) * inverse * scale
    return (y if shift is None else y + shift), mean, inverse, total


def _skip_rms_norm(
    x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None, epsilon: float = 1e-12
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = x + skip if bias is None else x + skip + bias
    inverse = (total.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return rms_norm(total, scale, epsilon=epsilon), torch.zeros_like(inverse), inverse, total


def _rotary_embedding(
    x: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
    is_packed_batching: int = 0,
) -> Tensor:
    if is_packed_batching or scale != 1:
        raise NotImplementedError("packed batches or a scale")
    if x.ndim == 3 and not num_heads:
        num_heads = x.shape[-1] // (rotary_embedding_dim or 2 * cos.shape[-1])
    positions = _positions(positions, x.shape[0], x.shape[-2])
    return rotary_embedding(x, cos, sin, positions, interleaved, num_heads, rotary_embedding_dim)


def _positions(given: Tensor, batch: int, rows: int) -> Tensor:
    """[batch, rows], also of the first row's alone."""
    if given.numel() == 1:
        given = given.reshape(1, 1) + torch.arange(rows, device=given.device)
    return given.expand(batch, rows)


def _group_query_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    seqlens_k: Tensor,
    total_sequence_length: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    position_ids: Tensor | None = None,
    bias: Tensor | None = None,
    *others: Tensor | None,
    num_heads: int,
    kv_num_heads: int,
    do_rotary: int = 0,
    rotary_interleaved: int = 0,
    local_window_size: int = -1,
    scale: float = 0.0,
    softcap: float = 0.0,
    smooth_softmax: int = 0,
    **options: object,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of keys and values in buffers of their own, which have no room for more: as in a run over a whole text."""
    if any(each is not None for each in others) or smooth_softmax == 1 or any(options.values()):
        raise NotImplementedError("sinks, quantized keys or other options")
    if key is None or value is None:
        size = query.shape[-1] // (num_heads + 2 * kv_num_heads)
        query, key, value = torch.split(query, [num_heads * size, kv_num_heads * size, kv_num_heads * size], -1)
    batch, rows = query.shape[:2]
    past = 0 if past_key is None else past_key.shape[2]
    if bool((seqlens_k.reshape(-1) != past + rows - 1).any()):
        raise NotImplementedError("keys of different lengths")
    if do_rotary:
        assert cos is not None and sin is not None
        start = torch.tensor([past]) if position_ids is None else position_ids
        positions, turned = _positions(start, batch, rows), 2 * cos.shape[-1]
        query, key = (
            rotary_embedding(x, cos, sin, positions, rotary_interleaved, heads, turned)
            for x, heads in ((query, num_heads), (key, kv_num_heads))
        )
    row = torch.arange(past, past + rows, device=query.device)[:, None]
    column = torch.arange(past + rows, device=query.device)
    seen = column <= row
    if local_window_size > 0:
        seen = seen & (column > row - local_window_size)
    mask = seen if bias is None else bias.to(query.device).masked_fill(~seen, -torch.inf)
    return attention(
        query,
        key,
        value,
        mask,
        past_key,
        past_value,
        q_num_heads=num_heads,
        kv_num_heads=kv_num_heads,
        scale=scale or None,
        softcap=softcap,
    )


def _multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *others: Tensor | None,
    num_heads: int,
    scale: float = 0.0,
    unidirectional: int = 0,
    mask_filter_value: float = -10000.0,
) -> tuple[Tensor, Tensor, Tensor]:
    if any(each is not None for each in others) or key.ndim != 3 or value.ndim != 3:
        raise NotImplementedError("keys and values of other layouts")
    if bias is not None:
        sizes = [query.shape[-1], key.shape[-1], value.shape[-1]]
        query, key, value = (x + b for x, b in zip((query, key, value), torch.split(bias, sizes), strict=True))
    mask = attention_bias
    if key_padding_mask is not None:
        if key_padding_mask.ndim != 2:
            raise NotImplementedError("a mask of other dimensions than [batch, keys]")
        hidden = mask_filter_value * (key_padding_mask[:, None, None] == 0)
        mask = hidden if mask is None else mask + hidden
    return attention(
        query,
        key,
        value,
        mask,
        past_key,
        past_value,
        is_causal=unidirectional,
        q_num_heads=num_heads,
        kv_num_heads=num_heads,
        scale=scale or None,
    )


def _fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


CONTRIB_OPERATORS: dict[str, Operator] = {
    "BiasGelu": lambda x, bias: functional.gelu(x + bias),
    "FastGelu": _fast_gelu,
    "Gelu": functional.gelu,
    "GroupQueryAttention": _group_query_attention,
    "MultiHeadAttention": _multi_head_attention,
    "QuickGelu": lambda x, alpha=1.702: x * torch.sigmoid(alpha * x),
    "RotaryEmbedding": _rotary_embedding,
    "SkipLayerNormalization": _skip_layer_norm,
    "SkipSimplifiedLayerNormalization": _skip_rms_norm,
}
"""By the operator's name in the domain `com.microsoft`."""
