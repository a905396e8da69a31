"""A Llama of half a billion random weights, for `benchmarks/runtimes.py`: compiled, and as a GGUF file in Q4_0.

    python benchmarks/random_llama.py OUT [--weights lut3g128]
    python benchmarks/runtimes.py OUT/compiled/model.onnx --peer llama.cpp=OUT/q4_0.gguf

The sizes are those of `benchmarks/synthetic_llama.py`. Both hold all weights in their format, the embedding and the
head, which share theirs, among them. Speed does not depend on what the numbers are.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
import typer
from quality import qxc
from synthetic_llama import EPSILON, ROTARY_BASE, Llama
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM

import qxcompiler


def write_hugging_face(sizes: Llama, folder: Path) -> None:
    """Random weights of the deviation that models begin their training with."""
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.mlp,
        num_hidden_layers=sizes.blocks,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_value_heads,
        max_position_embeddings=sizes.positions,
        rms_norm_eps=EPSILON,
        rope_theta=ROTARY_BASE,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).half().save_pretrained(folder)
    Tokenizer(WordLevel({"<unk>": 0}, "<unk>")).save(str(folder / "tokenizer.json"))  # a model comes with one


def write_gguf(sizes: Llama, path: Path) -> None:
    """Random codes of four bits; one scale for every block of them."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(sizes.vocabulary)
    writer.add_context_length(sizes.positions)
    writer.add_embedding_length(sizes.hidden)
    writer.add_feed_forward_length(sizes.mlp)
    writer.add_block_count(sizes.blocks)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.key_value_heads)
    writer.add_rope_dimension_count(sizes.head_size)
    writer.add_rope_freq_base(ROTARY_BASE)
    writer.add_layer_norm_rms_eps(EPSILON)
    draws = np.random.default_rng(0)

    def add(name: str, rows: int, columns: int) -> None:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q4_0]
        blocks = draws.integers(0, 256, (rows, columns // block, size), np.uint8)
        blocks[..., :2] = np.frombuffer(np.float16(0.02 / 4).tobytes(), np.uint8)
        writer.add_tensor(f"{name}.weight", blocks.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def add_norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(sizes.hidden, np.float32))

    hidden, key_value = sizes.hidden, sizes.key_value_heads * sizes.head_size
    add("token_embd", sizes.vocabulary, hidden)
    for block in range(sizes.blocks):
        add_norm(f"blk.{block}.attn_norm")
        for name, rows in (("q", hidden), ("k", key_value), ("v", key_value), ("output", hidden)):
            add(f"blk.{block}.attn_{name}", rows, hidden)
        add_norm(f"blk.{block}.ffn_norm")
        add(f"blk.{block}.ffn_gate", sizes.mlp, hidden)
        add(f"blk.{block}.ffn_up", sizes.mlp, hidden)
        add(f"blk.{block}.ffn_down", hidden, sizes.mlp)
    add_norm("output_norm")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(out: Path, weights: str = "lut3g128", blocks: int = Llama.blocks) -> None:
    """Write both."""
    sizes = Llama(blocks=blocks)
    write_hugging_face(sizes, out / "hugging_face")
    qxcompiler.export(str(out / "hugging_face"), out / "exported")
    options = ["--target", "cpu-x86", "--quantizer", "rtn", "--activations", "a8", "--no-verify"]
    every = ["--weights", weights, "--head", weights, "--embedding", weights]
    qxc("compile", out / "exported" / "model.onnx", *options, *every, "-o", out / "compiled")
    write_gguf(sizes, out / "q4_0.gguf")


if __name__ == "__main__":
    typer.run(main)
