"""Which task a checkpoint is exported for."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("optimum.exporters.onnx")
pytest.importorskip("transformers")

import transformers

from qxcompiler.errors import ExportError
from qxcompiler.models.tasks import task_for


def config(model_type: str, architecture: str | None, **settings: Any) -> Any:
    found = transformers.AutoConfig.for_model(model_type, **settings)
    found.architectures = architecture and [architecture]
    return found


@pytest.mark.parametrize(
    ("model_type", "architecture", "task"),
    [
        ("bert", "BertModel", "feature-extraction"),
        ("bert", "BertForSequenceClassification", "text-classification"),
        ("bert", "BertForMaskedLM", "fill-mask"),
        ("bert", "BertForQuestionAnswering", "question-answering"),
        ("bert", "BertForTokenClassification", "token-classification"),
        ("bert", "BertForMultipleChoice", "multiple-choice"),
        ("vit", "ViTForImageClassification", "image-classification"),
        ("deit", "DeiTForImageClassificationWithTeacher", "image-classification"),
        ("segformer", "SegformerForSemanticSegmentation", "image-segmentation"),
        ("detr", "DetrForObjectDetection", "object-detection"),
        ("wav2vec2", "Wav2Vec2ForCTC", "automatic-speech-recognition"),
        ("wav2vec2", "Wav2Vec2ForSequenceClassification", "audio-classification"),
        ("whisper", "WhisperForConditionalGeneration", "automatic-speech-recognition-with-past"),
        ("whisper", "WhisperForAudioClassification", "audio-classification"),
        ("t5", "T5ForConditionalGeneration", "text2text-generation-with-past"),
        ("marian", "MarianMTModel", "text2text-generation-with-past"),
        ("llama", "LlamaForCausalLM", "text-generation-with-past"),
        ("llama", "LlamaModel", "feature-extraction"),
        ("clip", "CLIPModel", "feature-extraction"),
        ("resnet", "ResNetForImageClassification", "image-classification"),
        ("qwen3_moe", "Qwen3MoeForCausalLM", "text-generation-with-past"),
    ],
)
def test_the_architecture_says_the_task(model_type: str, architecture: str, task: str) -> None:
    chosen = task_for(config(model_type, architecture), None, "folder")
    assert chosen.name == task


@pytest.mark.parametrize(
    ("requested", "task"),
    [
        ("text-generation", "text-generation-with-past"),
        ("text-generation-with-past", "text-generation-with-past"),
        ("causal-lm", "text-generation-with-past"),
        ("feature-extraction", "feature-extraction"),
        ("feature-extraction-with-past", "feature-extraction-with-past"),
        ("sequence-classification", "text-classification"),
    ],
)
def test_a_requested_task_and_its_synonyms(requested: str, task: str) -> None:
    assert task_for(config("llama", "LlamaForCausalLM"), requested, "folder").name == task


def test_the_class_that_loads_follows_the_model_type() -> None:
    for model_type, loader in (("whisper", "AutoModelForSpeechSeq2Seq"), ("wav2vec2", "AutoModelForCTC")):
        assert task_for(config(model_type, None), "automatic-speech-recognition", "").loader.__name__ == loader


@pytest.mark.parametrize("requested", ["telepathy", "image-classification", "text-generation-with-past", ""])
def test_a_task_that_the_architecture_has_not_lists_those_it_has(requested: str) -> None:
    with pytest.raises(ExportError) as error:
        task_for(config("bert", "BertModel"), requested, "folder")
    assert str(error.value) == (
        f"folder: a bert model cannot be exported for the task {requested!r}: its tasks are feature-extraction, "
        "fill-mask, multiple-choice, question-answering, text-classification, token-classification"
    )


@pytest.mark.parametrize(
    ("architecture", "what"), [("BertForPreTraining", "BertForPreTraining"), ("eval", "eval"), (None, "bert")]
)
def test_an_architecture_without_a_task_asks_for_one(architecture: str | None, what: str) -> None:
    with pytest.raises(ExportError, match=rf"folder: is a {what}, whose task is not known: .* --task: .*fill-mask"):
        task_for(config("bert", architecture), None, "folder")


def test_model_types_that_optimum_does_not_export() -> None:
    with pytest.raises(ExportError, match=r"folder: optimum exports no models of type 'mamba' to ONNX: "):
        task_for(config("mamba", "MambaForCausalLM"), None, "folder")


def test_importing_the_export_does_not_import_the_exporters() -> None:
    program = "import sys, qxcompiler.models; print({'transformers', 'optimum', 'gguf'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
