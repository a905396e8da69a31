"""Every family of the recipes: a tiny random model, exported, against transformers itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_transformers import GROUPED, SMALL, VOCABULARY, save_model

from qxcompiler.evaluation.running import Runner
from qxcompiler.models import export, load_recipes

pytest.importorskip("optimum.exporters.onnx")
pytestmark = pytest.mark.slow

CAUSAL = {
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": None},
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "gemma": GROUPED,
    "gemma2": GROUPED,
    "phi": SMALL,
    "phi3": SMALL,
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "opt": SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32},
}
ENCODERS = {
    "bert": SMALL,
    "roberta": SMALL | {"pad_token_id": 1},
    "distilbert": {"vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION |= {"image_size": 16, "patch_size": 8}


def close(actual: np.ndarray, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-3, atol=1e-4)


def test_every_recipe_has_a_family_here() -> None:
    tested = {*CAUSAL, *ENCODERS, "vit", "clip", "whisper"}
    assert all(tested & set(recipe.model_types) for recipe in load_recipes())


@torch.no_grad()
@pytest.mark.parametrize("model_type", CAUSAL)
def test_causal_lm(model_type: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "hf", "AutoModelForCausalLM", model_type, CAUSAL[model_type])
    onnx = Runner(export(tmp_path / "hf", tmp_path / "onnx") / "model.onnx")

    # Two texts of 11 tokens: 7 at once, then 4 on top of their keys and values.
    ids = torch.randint(3, VOCABULARY, (2, 11))
    expected = model(input_ids=ids).logits
    past = {
        spec.name: np.zeros([d if isinstance(d, int) else 2 * (i == 0) for i, d in enumerate(spec.shape or ())], "f4")
        for spec in onnx.inputs
        if spec.name.startswith("past")
    }
    assert len(past) == 4
    names = {spec.name for spec in onnx.inputs}
    for begin, end in ((0, 7), (7, 11)):
        sample = {
            "input_ids": ids[:, begin:end].numpy(),
            "attention_mask": np.ones((2, end), np.int64),
            "position_ids": np.tile(np.arange(begin, end), (2, 1)),
        }
        sample = {name: value for name, value in sample.items() if name in names} | past
        logits, *present = onnx.run(sample, list(onnx.outputs))
        close(logits, expected[:, begin:end])
        past = dict(zip(past, present, strict=True))
    assert {file.name for file in (tmp_path / "onnx").iterdir()} >= {
        "config.json",
        "tokenizer.json",
        "model.onnx",
    }


@torch.no_grad()
@pytest.mark.parametrize("model_type", ENCODERS)
def test_encoder(model_type: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "hf", "AutoModel", model_type, ENCODERS[model_type])
    onnx = Runner(export(tmp_path / "hf", tmp_path / "onnx") / "model.onnx")
    ids = torch.randint(3, VOCABULARY, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    sample = {
        "input_ids": ids.numpy(),
        "attention_mask": mask.numpy(),
        "token_type_ids": np.zeros_like(ids.numpy()),
    }
    sample = {spec.name: sample[spec.name] for spec in onnx.inputs}
    (hidden,) = onnx.run(sample, ["last_hidden_state"])
    expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
    close(hidden[0], expected[0])
    close(hidden[1, :6], expected[1, :6])


@torch.no_grad()
def test_vit(tmp_path: Path) -> None:
    model = save_model(tmp_path / "hf", "AutoModel", "vit", VISION)
    (tmp_path / "hf" / "preprocessor_config.json").write_text("{}")
    onnx = Runner(export(tmp_path / "hf", tmp_path / "onnx") / "model.onnx")
    pixels = torch.randn(2, 3, 16, 16)
    (hidden,) = onnx.run({"pixel_values": pixels.numpy()}, ["last_hidden_state"])
    close(hidden, model(pixels).last_hidden_state)
    assert (tmp_path / "onnx" / "preprocessor_config.json").is_file()


@torch.no_grad()
def test_clip(tmp_path: Path) -> None:
    settings = {"text_config": SMALL, "vision_config": VISION, "projection_dim": 16}
    model = save_model(tmp_path / "hf", "AutoModel", "clip", settings)
    onnx = Runner(export(tmp_path / "hf", tmp_path / "onnx") / "model.onnx")
    ids, pixels = torch.randint(3, VOCABULARY, (3, 9)), torch.randn(2, 3, 16, 16)
    sample = {
        "input_ids": ids.numpy(),
        "attention_mask": np.ones((3, 9), np.int64),
        "pixel_values": pixels.numpy(),
    }
    scores, text, image = onnx.run(sample, ["logits_per_image", "text_embeds", "image_embeds"])
    expected = model(input_ids=ids, pixel_values=pixels)
    close(scores, expected.logits_per_image)
    close(text, expected.text_embeds)
    close(image, expected.image_embeds)


@torch.no_grad()
def test_whisper(tmp_path: Path) -> None:
    settings = {"vocab_size": VOCABULARY, "d_model": 32, "num_mel_bins": 8}
    for part in ("encoder", "decoder"):
        settings |= {f"{part}_layers": 1, f"{part}_attention_heads": 4, f"{part}_ffn_dim": 48}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    model = save_model(tmp_path / "hf", "AutoModelForSpeechSeq2Seq", "whisper", settings | tokens)
    folder = export(tmp_path / "hf", tmp_path / "onnx")
    sound, ids = torch.randn(1, 8, 3000), torch.randint(3, VOCABULARY, (1, 5))
    expected = model(input_features=sound, decoder_input_ids=ids)

    (hidden,) = Runner(folder / "encoder_model.onnx").run({"input_features": sound.numpy()}, ["last_hidden_state"])
    close(hidden, expected.encoder_last_hidden_state)
    decoder = Runner(folder / "decoder_model.onnx")
    logits, *present = decoder.run(
        {"input_ids": ids[:, :4].numpy(), "encoder_hidden_states": hidden}, list(decoder.outputs)
    )
    close(logits, expected.logits[:, :4])
    follower = Runner(folder / "decoder_with_past_model.onnx")
    past = {
        name.replace("present", "past_key_values"): y
        for name, y in zip(list(decoder.outputs)[1:], present, strict=True)
    }
    sample = {"input_ids": ids[:, 4:].numpy(), "cache_position": np.array([4])} | past
    (logits,) = follower.run({spec.name: sample[spec.name] for spec in follower.inputs}, ["logits"])
    close(logits, expected.logits[:, 4:])
