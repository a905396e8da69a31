"""Tiny random models of transformers, in the form in which real ones are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

VOCABULARY = 64
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SMALL | {"num_key_value_heads": 2, "head_dim": 8}
SEQ2SEQ = {"vocab_size": VOCABULARY, "d_model": 32, "max_position_embeddings": 64, "decoder_start_token_id": 1}
SEQ2SEQ |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "forced_eos_token_id": None}
for _part in ("encoder", "decoder"):
    SEQ2SEQ |= {f"{_part}_layers": 1, f"{_part}_attention_heads": 4, f"{_part}_ffn_dim": 48}
WAV2VEC2 = {key: SMALL[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")}
WAV2VEC2 |= {"num_hidden_layers": 1, "conv_dim": (16, 16), "conv_kernel": (10, 8), "conv_stride": (5, 4)}
WAV2VEC2 |= {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION |= {"image_size": 16, "patch_size": 8}


def save_tokenizer(folder: Path) -> None:
    words = {f"w{i}": i for i in range(VOCABULARY - 1)} | {"<unk>": VOCABULARY - 1}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def save_model(folder: Path, model_class: str, model_type: str, settings: dict[str, Any]) -> Any:
    """A random model, written as safetensors; its norms are random, too, so that a wrong one shows."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **settings)
    loader = getattr(transformers, model_class)
    model = (loader.from_config(config) if model_class.startswith("Auto") else loader(config)).eval()
    with torch.no_grad():
        for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model
