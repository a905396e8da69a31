"""onnxruntime-genai runs what `qxc compile` wrote, as it stands in the folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_transformers import GROUPED, SMALL, VOCABULARY, save_model

import qxcompiler
from qxcompiler.evaluation.running import Runner
from qxcompiler_runtime.decoder import Decoder

pytest.importorskip("optimum.exporters.onnx")
genai = pytest.importorskip("onnxruntime_genai")
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def written_by_genai(folder: Path, ids: list[int], count: int) -> list[int]:
    model = genai.Model(str(folder))
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + count, min_length=len(ids) + count, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(np.array(ids, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return list(generator.get_sequence(0))[len(ids) :]


FAMILIES = {"llama": GROUPED, "qwen3": GROUPED, "gpt2": GPT2, "phi": SMALL}


@pytest.mark.parametrize(
    ("model_type", "kv"), [*((each, None) for each in FAMILIES), ("llama", "int8"), ("gpt2", "int4")]
)
def test_the_same_tokens(model_type: str, kv: str | None, tmp_path: Path) -> None:
    settings = FAMILIES[model_type]
    save_model(tmp_path / "hf", "AutoModelForCausalLM", model_type, settings)
    folder = qxcompiler.export(tmp_path / "hf", tmp_path / "onnx")
    out = tmp_path / "out"
    options = {"weights": "int8g16", "activations": "a32", "quantizer": "rtn", "kv": kv}
    qxcompiler.compile(folder / "model.onnx", "cpu-x86", out, **options)
    config = json.loads((out / "genai_config.json").read_text())
    assert config["search"]["past_present_share_buffer"]
    ids = np.random.default_rng(0).integers(3, VOCABULARY, 7).tolist()
    decoder, expected, step = Decoder(Runner(out / "model.onnx")), [], ids
    for _ in range(12):
        logits = decoder.step([step])
        logits[:, settings["eos_token_id"]] = -np.inf  # as the runtime does until the shortest length is reached
        expected.append(int(logits.argmax()))
        step = expected[-1:]
    assert written_by_genai(out, ids, 12) == expected


def test_an_encoder_has_no_such_files(tmp_path: Path) -> None:
    save_model(tmp_path / "hf", "AutoModel", "bert", SMALL)
    folder = qxcompiler.export(tmp_path / "hf", tmp_path / "onnx")
    qxcompiler.compile(folder / "model.onnx", "cpu-x86", tmp_path / "out", weights="int8g16", quantizer="rtn")
    assert not (tmp_path / "out" / "genai_config.json").exists()
