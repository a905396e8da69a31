"""Families of models and their tasks: tiny random ones, exported, against transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_transformers import GROUPED, SEQ2SEQ, SMALL, VISION, VOCABULARY, WAV2VEC2, save_model

from qxcompiler.evaluation.running import Runner
from qxcompiler.models import export

pytest.importorskip("optimum.exporters.onnx")

slow = pytest.mark.slow
MIXTURE = GROUPED | {"moe_intermediate_size": 24, "num_experts": 5, "num_experts_per_tok": 2, "norm_topk_prob": True}
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
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "qwen3_moe": MIXTURE,
    "qwen2_moe": MIXTURE | {"shared_expert_intermediate_size": 24},
    "olmoe": MIXTURE,
    "mixtral": GROUPED | {"num_local_experts": 5, "num_experts_per_tok": 2},
}
QUICK = {"llama", "mixtral"}
ENCODERS = {
    "bert": SMALL,
    "roberta": SMALL | {"pad_token_id": 1},
    "distilbert": {"vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
}
TEXT, PIXELS, SOUND = ("input_ids", "attention_mask"), ("pixel_values",), ("input_values",)
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
SEGFORMER = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16]}
SEGFORMER |= {"num_attention_heads": [1, 2], "patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [2, 2]}
SEGFORMER |= {"decoder_hidden_size": 16}
CONVNEXT = {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "image_size": 32}
SWIN = {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
MOBILENET = {"depth_multiplier": 0.25, "image_size": 32}
GPT2 = CAUSAL["gpt2"] | {"pad_token_id": 0}
# model type, class of transformers, settings, inputs, outputs
HEADS = {
    "sequence": ("bert", "BertForSequenceClassification", SMALL, TEXT, ["logits"]),
    "masked-lm": ("bert", "BertForMaskedLM", SMALL, TEXT, ["logits"]),
    "question": ("bert", "BertForQuestionAnswering", SMALL, TEXT, ["start_logits", "end_logits"]),
    "token": ("bert", "BertForTokenClassification", SMALL, TEXT, ["logits"]),
    "vit": ("vit", "ViTForImageClassification", VISION, PIXELS, ["logits"]),
    "resnet": ("resnet", "ResNetForImageClassification", RESNET, PIXELS, ["logits"]),
    "ctc": ("wav2vec2", "Wav2Vec2ForCTC", WAV2VEC2, SOUND, ["logits"]),
}
SLOW_HEADS = {
    "gpt2": ("gpt2", "GPT2ForSequenceClassification", GPT2, TEXT, ["logits"]),
    "albert": ("albert", "AlbertForMaskedLM", SMALL | {"embedding_size": 16}, TEXT, ["logits"]),
    "electra": ("electra", "ElectraForTokenClassification", SMALL | {"embedding_size": 16}, TEXT, ["logits"]),
    "modernbert": ("modernbert", "ModernBertForMaskedLM", SMALL, TEXT, ["logits"]),
    "bart": ("bart", "BartForSequenceClassification", SEQ2SEQ, TEXT, ["logits"]),
    "deit": ("deit", "DeiTForImageClassification", VISION, PIXELS, ["logits"]),
    "swin": ("swin", "SwinForImageClassification", SWIN, PIXELS, ["logits"]),
    "convnext": ("convnext", "ConvNextForImageClassification", CONVNEXT, PIXELS, ["logits"]),
    "mobilenet": ("mobilenet_v2", "MobileNetV2ForImageClassification", MOBILENET, PIXELS, ["logits"]),
    "segformer": ("segformer", "SegformerForSemanticSegmentation", SEGFORMER, PIXELS, ["logits"]),
    "yolos": (
        *("yolos", "YolosForObjectDetection", VISION | {"image_size": [32, 32], "num_detection_tokens": 5}),
        *(PIXELS, ["logits", "pred_boxes"]),
    ),
    "sound": ("wav2vec2", "Wav2Vec2ForSequenceClassification", WAV2VEC2, SOUND, ["logits"]),
    "hubert": ("hubert", "HubertForCTC", WAV2VEC2, SOUND, ["logits"]),
    "wavlm": ("wavlm", "WavLMForCTC", WAV2VEC2, SOUND, ["logits"]),
}
T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
T5 |= {"decoder_start_token_id": 0}
WHISPER = SEQ2SEQ | {"num_mel_bins": 8}
ENCODER_DECODERS = {
    "t5": T5,
    "mt5": T5,
    "bart": SEQ2SEQ,
    "marian": SEQ2SEQ,
    "mbart": SEQ2SEQ,
    "pegasus": SEQ2SEQ,
    "m2m_100": SEQ2SEQ,
    "whisper": WHISPER,
}


def close(actual: np.ndarray, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-3, atol=1e-4)


def example(name: str) -> torch.Tensor:
    match name:
        case "input_ids":
            return torch.randint(3, VOCABULARY, (3, 9))
        case "attention_mask":
            mask = torch.ones(3, 9, dtype=torch.int64)
            mask[1, 6:] = 0
            return mask
        case "pixel_values":
            return torch.randn(3, 3, 32, 32)
    return torch.randn(3, 800)


@torch.no_grad()
@pytest.mark.parametrize("name", [*HEADS, *(pytest.param(name, marks=slow) for name in SLOW_HEADS)])
def test_the_head_of_the_task(name: str, tmp_path: Path) -> None:
    model_type, model_class, settings, inputs, outputs = (HEADS | SLOW_HEADS)[name]
    if name in ("vit", "deit"):
        settings = settings | {"image_size": 32}
    labels = {"num_labels": 2 if name == "question" else 5}
    model = save_model(tmp_path / "hf", model_class, model_type, settings | labels)
    folder = export(tmp_path / "hf", tmp_path / "onnx")
    onnx = Runner(folder / "model.onnx")
    assert list(onnx.outputs) == outputs
    given = {name: example(name) for name in inputs}
    if name == "bart":  # takes the last token of this kind for the text's end
        given["input_ids"][:, 5] = settings["eos_token_id"]
    sample = {name: value.numpy() for name, value in given.items()}
    sample["token_type_ids"] = np.zeros((3, 9), np.int64)
    expected = model(**given)
    for actual, output in zip(
        onnx.run({spec.name: sample[spec.name] for spec in onnx.inputs}, outputs), outputs, strict=True
    ):
        close(actual, expected[output])
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [model_class]


@torch.no_grad()
def test_multiple_choice(tmp_path: Path) -> None:
    model = save_model(tmp_path / "hf", "AutoModelForMultipleChoice", "bert", SMALL)
    onnx = Runner(export(tmp_path / "hf", tmp_path / "onnx") / "model.onnx")
    ids = torch.randint(3, VOCABULARY, (2, 3, 7))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    (logits,) = onnx.run({name: value.numpy() for name, value in given.items()}, ["logits"])
    close(logits, model(**given).logits)


@torch.no_grad()
@pytest.mark.parametrize("model_type", [pytest.param(name, marks=[] if name in QUICK else slow) for name in CAUSAL])
def test_causal_lm(model_type: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "hf", "AutoModelForCausalLM", model_type, CAUSAL[model_type])
    onnx = Runner(export(tmp_path / "hf", tmp_path / "onnx") / "model.onnx")

    # Two texts of 11 tokens: 7 at once, then 3 and 1 on top of their keys and values.
    ids = torch.randint(3, VOCABULARY, (2, 11))
    expected = model(input_ids=ids).logits
    past = {
        spec.name: np.zeros([d if isinstance(d, int) else 2 * (i == 0) for i, d in enumerate(spec.shape or ())], "f4")
        for spec in onnx.inputs
        if spec.name.startswith("past")
    }
    assert len(past) == 4
    names = {spec.name for spec in onnx.inputs}
    for begin, end in ((0, 7), (7, 10), (10, 11)):
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


@slow
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


@slow
@torch.no_grad()
def test_vit(tmp_path: Path) -> None:
    model = save_model(tmp_path / "hf", "AutoModel", "vit", VISION)
    (tmp_path / "hf" / "preprocessor_config.json").write_text("{}")
    onnx = Runner(export(tmp_path / "hf", tmp_path / "onnx") / "model.onnx")
    pixels = torch.randn(2, 3, 16, 16)
    (hidden,) = onnx.run({"pixel_values": pixels.numpy()}, ["last_hidden_state"])
    close(hidden, model(pixels).last_hidden_state)
    assert (tmp_path / "onnx" / "preprocessor_config.json").is_file()


@slow
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
@pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=[] if name in ("t5", "bart") else slow) for name in ENCODER_DECODERS]
)
def test_encoder_decoder(model_type: str, tmp_path: Path) -> None:
    speech = model_type == "whisper"
    loader = "AutoModelForSpeechSeq2Seq" if speech else "AutoModelForSeq2SeqLM"
    model = save_model(tmp_path / "hf", loader, model_type, ENCODER_DECODERS[model_type])
    folder = export(tmp_path / "hf", tmp_path / "onnx")
    assert {file.name for file in folder.glob("*.onnx")} == {
        *("encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx")
    }
    given = {"input_features": torch.randn(2, 8, 3000)} if speech else {"input_ids": torch.randint(3, 64, (2, 7))}
    ids = torch.randint(3, VOCABULARY, (2, 5))
    expected = model(**given, decoder_input_ids=ids)

    encoder, first, next_ = (
        Runner(folder / f"{name}.onnx") for name in ("encoder_model", "decoder_model", "decoder_with_past_model")
    )
    sample = {name: value.numpy() for name, value in given.items()}
    sample["attention_mask"] = sample["encoder_attention_mask"] = np.ones((2, 7), np.int64)
    sample["encoder_hidden_states"] = run(encoder, sample)["last_hidden_state"]
    close(sample["encoder_hidden_states"], expected.encoder_last_hidden_state)
    # Three tokens at once, then two more, one by one.
    outputs = run(first, sample | {"input_ids": ids[:, :3].numpy()})
    close(outputs["logits"], expected.logits[:, :3])
    for position in (3, 4):
        past = {name.replace("present", "past_key_values"): y for name, y in outputs.items() if "present" in name}
        sample |= past | {"input_ids": ids[:, position : position + 1].numpy(), "cache_position": np.array([position])}
        outputs = run(next_, sample)
        close(outputs["logits"], expected.logits[:, position : position + 1])


def run(onnx: Runner, sample: dict[str, Any]) -> dict[str, np.ndarray]:
    values = onnx.run({spec.name: sample[spec.name] for spec in onnx.inputs}, list(onnx.outputs))
    return dict(zip(onnx.outputs, values, strict=True))
