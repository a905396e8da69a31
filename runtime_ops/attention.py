"""`Attention`, with rotary embedding and a cache of keys and values or without, as ONNX function bodies."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from qxcompiler.formats import CACHE_FORMATS, CacheFormat
from qxcompiler.runtime_ops.cache_rows import CacheRows
from qxcompiler.runtime_ops.hadamard import block_size_of, rotated
from qxcompiler.runtime_ops.unpack import as_float, attribute

__all__ = ["ATTENTION_ATTRIBUTES", "ATTENTION_TYPES", "AttentionType"]

ATTENTION_ATTRIBUTES = {
    "num_heads": ir.AttributeType.INT,
    "kv_num_heads": ir.AttributeType.INT,
    "scale": ir.AttributeType.FLOAT,
    "softcap": ir.AttributeType.FLOAT,
}
_LOWEST = -3.4028234663852886e38  # of float32


@dataclass(frozen=True)
class AttentionType:
    """What an attention does besides attending.

    Attributes:
        rotary: embeds the positions of queries and new keys, by cosines and sines that are inputs.
        cached: reads earlier keys and values too, and gives them back with the new ones.
        cache_format: how these are kept; None as they are.
    """

    rotary: bool
    cached: bool
    cache_format: CacheFormat | None = None

    @property
    def name(self) -> str:
        """The operator: `RotaryCachedAttentionInt8`."""
        suffix = self.cache_format.operator_suffix if self.cache_format else ""
        return f"{'Rotary' if self.rotary else ''}{'Cached' if self.cached else ''}Attention{suffix}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """In the operator's order."""
        rotation = ("cos", "sin") if self.rotary else ()
        past = ("past_key", "past_value") if self.cached else ()
        return ("query", "key", "value", *rotation, *past, "mask")

    @property
    def outputs(self) -> tuple[str, ...]:
        """In the operator's order."""
        return ("Y", "present_key", "present_value") if self.cached else ("Y",)

    def write_body(self, op: OpBuilder, *values: ir.Value) -> list[ir.Value]:
        """The function body: softmax(softcap(scale Q K^T) + mask) V of every head, in float32.

        H query heads share G heads of keys and values, H / G neighbors one. Of a cache, the T = mask.shape[-1] tokens
        so far count, of which the L new ones are last.

        Args:
            op: writes the nodes.
            values: `inputs`, all float32 or all float16:
                query [B, L, H D]; key and value [B, S, G D], S = L where cached;
                cos and sin [B or 1, L, R], R even and at most D;
                past_key and past_value [B, G, P, D], P at least T - L, or, in a format, uint8 [B, G, P, row bytes];
                mask [B or 1, H or 1, L or 1, S or 1], or, where cached, [..., T]. A query whose mask is minus infinity
                everywhere gives zeros.

        Returns:
            Y [B, L, H D]; where cached, present_key and present_value [B, G, max(P, T), ...] too: the past with the
            new tokens from T - L on, which are attended to as they are kept.
        """
        inputs, fmt = dict(zip(self.inputs, values, strict=True)), self.cache_format
        query, mask = inputs["query"], inputs["mask"]
        heads, groups = (op.Reshape(attribute(op, name), [1]) for name in ("num_heads", "kv_num_heads"))
        batch, length = op.Shape(query, start=0, end=1), op.Shape(query, start=1, end=2)
        size = op.Div(op.Shape(query, start=-1), heads)
        Q, K, V = _by_head(op, query, heads), _by_head(op, inputs["key"], groups), _by_head(op, inputs["value"], groups)
        if self.rotary:
            cos, sin = (as_float(op, op.Unsqueeze(inputs[name], [1])) for name in ("cos", "sin"))
            embedded = [_embedded(op, as_float(op, each), cos, sin) for each in (Q, K)]
            Q, K = embedded[0], embedded[1] if fmt else op.CastLike(embedded[1], K)
        if fmt:
            rows = CacheRows(op, fmt)
            KV = op.Concat(as_float(op, K), as_float(op, V), axis=1)
            if fmt.rotated:
                block = block_size_of(op, size)
                Q, KV = rotated(op, Q, block), rotated(op, KV, block)
            K, V = op.Split(rows.encoded(KV), axis=1, num_outputs=2, _outputs=2)
        present: list[ir.Value] = []
        if self.cached:
            tokens = op.Shape(mask, start=-1)
            first_new = op.Sub(tokens, length)
            tokens.dtype = first_new.dtype = ir.DataType.INT64
            present = [
                _appended(op, inputs["past_key"], K, first_new, tokens),
                _appended(op, inputs["past_value"], V, first_new, tokens),
            ]
            K, V = (op.Slice(each, [0], tokens, [2]) for each in present)
        if fmt:
            K, V = op.Split(rows.decoded(op.Concat(K, V, axis=1), size), axis=1, num_outputs=2, _outputs=2)
        # heads that share keys are neighbors: their queries are the rows of one product
        shared = op.Concat(batch, groups, op.Mul(op.Div(heads, groups), length), size, axis=0)
        products = op.MatMul(
            op.Reshape(as_float(op, Q), shared, allowzero=1), op.Transpose(as_float(op, K), perm=[0, 1, 3, 2])
        )
        keys = op.Shape(K, start=2, end=3)
        by_head = op.Concat(batch, heads, length, keys, axis=0)
        scores = op.Mul(op.Reshape(products, by_head, allowzero=1), attribute(op, "scale", ir.AttributeType.FLOAT))
        softcap = attribute(op, "softcap", ir.AttributeType.FLOAT)
        capped = op.Mul(op.Tanh(op.Div(scores, softcap)), softcap)
        scores = op.Add(op.Where(op.Greater(softcap, 0.0), capped, scores), as_float(op, mask))
        # a row that is masked everywhere: its largest is taken for finite, its sum for 1; other sums are at least 1
        largest = op.ReduceMax(scores, [-1])
        largest.dtype = ir.DataType.FLOAT
        exponentials = op.Exp(op.Sub(scores, op.Max(largest, _LOWEST)))
        sums = op.ReduceSum(exponentials, [-1])
        sums.dtype = ir.DataType.FLOAT
        # before the product: where there are no keys, onnxruntime's sums have no rows
        weights = op.Div(exponentials, op.Max(sums, 1.0))
        by_group = op.Concat(op.Slice(shared, [0], [-1]), keys, axis=0)
        products = op.MatMul(op.Reshape(weights, by_group, allowzero=1), as_float(op, V))
        Y = op.Reshape(products, op.Concat(batch, heads, length, size, axis=0), allowzero=1)
        if fmt and fmt.rotated:
            Y = rotated(op, Y, block, back=True)
        merged = op.Concat(batch, length, op.Mul(heads, size), axis=0)
        return [op.CastLike(op.Reshape(op.Transpose(Y, perm=[0, 2, 1, 3]), merged, allowzero=1), query), *present]


def _by_head(op: OpBuilder, X: ir.Value, heads: ir.Value) -> ir.Value:
    """[B, L, heads D] -> [B, heads, L, D]."""
    shape = op.Concat(op.Shape(X, end=-1), heads, op.Div(op.Shape(X, start=-1), heads), axis=0)
    return op.Transpose(op.Reshape(X, shape, allowzero=1), perm=[0, 2, 1, 3])


def _embedded(op: OpBuilder, X: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
    """Rotary embedding by halves of the first R channels of X [B, heads, L, D], with cos and sin [B or 1, 1, L, R]."""
    width = op.Shape(cos, start=-1)
    half = op.Div(width, 2)
    first, second = op.Slice(X, [0], half, [-1]), op.Slice(X, half, width, [-1])
    channels = op.Concat(first, second, axis=-1)
    turned = op.Concat(op.Neg(second), first, axis=-1)
    rest = op.Slice(X, width, op.Shape(X, start=-1), [-1])
    return op.Concat(op.Add(op.Mul(channels, cos), op.Mul(turned, sin)), rest, axis=-1)


def _appended(op: OpBuilder, past: ir.Value, new: ir.Value, first: ir.Value, tokens: ir.Value) -> ir.Value:
    """The past [B, G, P, D] with new rows instead of those from `first` on, up to row `tokens`."""
    before, after = op.Slice(past, [0], first, [2]), op.Slice(past, tokens, op.Shape(past, start=2, end=3), [2])
    return op.Concat(before, new, after, axis=2)


ATTENTION_TYPES = [
    *(AttentionType(rotary, cached) for cached in (False, True) for rotary in (False, True)),
    *(AttentionType(rotary, True, fmt) for fmt in CACHE_FORMATS.values() for rotary in (False, True)),
]
