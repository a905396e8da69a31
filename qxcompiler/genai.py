"""What onnxruntime-genai reads beside a language model: `genai_config.json`, and the operators' library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qxcompiler.runtime_ops.operators import DOMAIN
from qxcompiler_runtime import ops_library
from qxcompiler_runtime.caches import SHARED_CACHE, is_past
from qxcompiler_runtime.configuration import GENAI_CONFIG, context_limit, end_of_sequence, head_size, settings_beside

__all__ = ["GENAI_FILES", "write_genai_files"]

GENAI_FILES = (GENAI_CONFIG, "libqxc_ops.so")
_PAST, _PRESENT = "past_key_values.%d.{}", "present.%d.{}"
_ASKED = ("input_ids", "attention_mask", "position_ids")  # what the runtime feeds, where a model takes it


def write_genai_files(model: ir.Model, source: Path, folder: Path) -> bool:
    """Let onnxruntime-genai load a model: https://onnxruntime.ai/docs/genai/reference/config.html.

    Args:
        model: a compiled one, `model.onnx` in `folder`.
        source: the folder of the original, whose configurations say what the model's tokens stand for.
        folder: where to write.

    Returns:
        whether it is one that the runtime takes: token ids in, logits out, keys and values under the usual names.
    """
    config = _config(model, source)
    if config is None:
        return False
    if any(function.domain == DOMAIN for function in model.functions.values()):
        config["model"]["decoder"]["session_options"]["custom_ops_library"] = GENAI_FILES[1]
        shutil.copyfile(ops_library(), folder / GENAI_FILES[1])
    (folder / GENAI_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return True


def _config(model: ir.Model, source: Path) -> dict[str, Any] | None:
    inputs = {value.name: value for value in model.graph.inputs if not value.is_initializer()}
    outputs = {value.name: value for value in model.graph.outputs}
    pasts = [name for name in inputs if is_past(name or "")]
    layers = len(pasts) // 2
    kinds = ("key", "value")
    usual = {_PAST.format(kind) % layer for kind in kinds for layer in range(layers)}
    kept = {_PRESENT.format(kind) % layer for kind in kinds for layer in range(layers)}
    rest = set(inputs) - usual
    context, settings = context_limit(source / "model.onnx"), settings_beside(source)
    fits = layers and set(pasts) == usual and kept | {"logits"} == set(outputs)
    if not fits or "input_ids" not in rest or not rest <= set(_ASKED) or context is None:
        return None
    past, logits = inputs[_PAST.format("key") % 0], outputs["logits"]
    if past.shape is None or logits.shape is None:
        return None
    heads, last = past.shape[1], logits.shape[-1]
    size = past.shape[3] if isinstance(past.shape[3], int) else head_size(source)
    vocabulary = last if isinstance(last, int) else settings.get("vocab_size")
    end = sorted(end_of_sequence(source))
    query_heads = settings.get("num_attention_heads", settings.get("n_head"))
    numbers = (heads, size, vocabulary, query_heads, settings.get("hidden_size", settings.get("n_embd")))
    if not end or not all(isinstance(number, int) for number in numbers):
        return None
    decoder: dict[str, Any] = {
        "filename": "model.onnx",
        "head_size": size,
        "hidden_size": numbers[-1],
        "num_attention_heads": query_heads,
        "num_key_value_heads": heads,
        "num_hidden_layers": layers,
        "inputs": {
            **{name: name for name in _ASKED if name in rest},
            **{f"past_{kind}_names": _PAST.format(kind) for kind in kinds},
        },
        "outputs": {"logits": "logits", **{f"present_{kind}_names": _PRESENT.format(kind) for kind in kinds}},
        "session_options": {"provider_options": []},
    }
    tokens = {
        "bos_token_id": settings.get("bos_token_id", end[0]),
        "eos_token_id": end if len(end) > 1 else end[0],
        "pad_token_id": settings.get("pad_token_id", end[0]),
    }
    tokens = {name: end[0] if token is None else token for name, token in tokens.items()}
    shared = SHARED_CACHE in model.metadata_props
    return {
        "model": {"type": "decoder", "vocab_size": vocabulary, "context_length": context, **tokens, "decoder": decoder},
        "search": {"max_length": context, "past_present_share_buffer": shared, "do_sample": False, "num_beams": 1},
    }
