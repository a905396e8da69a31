"""Inputs of the fuzzer: a seed file damaged in one way or more, and a command line that reads it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random

import onnx
from mutations import mutate_arrays, mutate_bytes, mutate_document, mutate_lines, mutate_message

__all__ = ["CORPUS", "KINDS", "REPLAYED", "Case", "keep_case", "make_case", "replays"]

CORPUS = Path(__file__).parents[1] / "corpus"
FOUND = CORPUS / "found"  # a folder for each input that once failed: its files, and its arguments
REPLAYED = "found before"
COMPANIONS = ("external.bin", "tokenizer.json", "config.json", "generation_config.json")
MODELS = sorted(path.stem for path in CORPUS.glob("*.onnx"))

WEIGHTS = ("int4g16", "int4g16", "int4g16a", "int3g32", "lut3g128", "nf4g64", "ternaryg64", "mxfp4", "int8", "int9")
KEPT = ("head|embedding", "first", "(", "zzz", ".*", "")


@dataclass(frozen=True)
class Case:
    """What to run: arguments relative to a folder that holds the files, and what was damaged."""

    kind: str
    arguments: list[str]


def replays() -> list[str]:
    """The names of inputs that once failed."""
    return sorted(path.name for path in FOUND.iterdir())


def make_case(folder: Path, seed: int, number: int | str) -> Case:
    """Write the files of one input into an empty folder; the same seed and number give the same input.

    Args:
        folder: where.
        seed: of all inputs.
        number: of this one, or a name among `replays()`.
    """
    for name in COMPANIONS:
        shutil.copyfile(CORPUS / name, folder / name)
    if isinstance(number, str):
        shutil.copytree(FOUND / number, folder, dirs_exist_ok=True)
        arguments = json.loads((folder / "arguments.json").read_text())
        return Case(REPLAYED, [argument.replace("CORPUS", str(CORPUS)) for argument in arguments])
    draw = Random(f"{seed}.{number}")
    kind = draw.choices(sorted(KINDS), [KINDS[kind][0] for kind in sorted(KINDS)])[0]
    return Case(kind, KINDS[kind][1](folder, draw))


def keep_case(kept: Path, folder: Path, case: Case) -> None:
    """Keep an input, as `FOUND` holds them: its arguments, and the files that are not seeds."""
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        seed = CORPUS / path.name
        if path.is_file() and not (seed.is_file() and seed.read_bytes() == path.read_bytes()):
            shutil.copyfile(path, kept / path.name)
    arguments = [argument.replace(str(CORPUS), "CORPUS") for argument in case.arguments]
    (kept / "arguments.json").write_text(json.dumps(arguments) + "\n")


def _model(folder: Path, name: str) -> None:
    shutil.copyfile(CORPUS / f"{name}.onnx", folder / "model.onnx")


def _compile(draw: Random, name: str) -> list[str]:
    """Options of a compile that fit, or nearly fit."""
    source = "model.onnx" if draw.random() < 0.9 else "."
    arguments = ["compile", source, "--target", draw.choice(("cpu-x86", "cpu-x86", "npu-int8")), "-o", "out"]
    if draw.random() < 0.5:
        arguments += ["--calibration", _samples(draw, name), "--samples", "4", "--length", "6"]
    else:
        arguments += ["--quantizer", draw.choice(("rtn", "rtn", "rtn", "gptq"))]
    if draw.random() < 0.7:
        arguments += ["--weights", draw.choice(WEIGHTS)]
    if draw.random() < 0.2:
        arguments += [draw.choice(("--head", "--embedding")), draw.choice((*WEIGHTS, "float"))]
    if draw.random() < 0.1:
        arguments += ["--no-verify"]
    if draw.random() < 0.2:
        arguments += ["--activations", draw.choice(("a8", "a16", "a32"))]
    if draw.random() < 0.1:
        arguments += ["--keep", draw.choice(KEPT)]
    return arguments


def _samples(draw: Random, name: str) -> str:
    own = [path.name for path in (CORPUS / f"{name}.npz",) if path.is_file()]
    fitting = own + (["words.txt", "words.jsonl"] if name == "decoder" else [])
    path = CORPUS / draw.choice(fitting or ["functions.npz"])
    return str(path)


def _commands(draw: Random, name: str) -> list[str]:
    how = draw.randrange(8)
    if how < 5:
        return _compile(draw, name)
    if how == 5:
        return ["inspect", "model.onnx", *draw.choice(([], ["--json"], ["--target", "npu-int8", "--context", "4"]))]
    if name == "decoder" and how == 6:
        return ["generate", "model.onnx", "--prompt", "w1 w2 w3", "--max-new-tokens", "3"]
    arguments = ["eval", "model.onnx", "--text", _samples(draw, name), "--windows", "2", "--length", "6"]
    if draw.random() < 0.5:
        arguments += ["--reference", str(CORPUS / f"{name}.onnx")]
    return arguments


def _model_bytes(folder: Path, draw: Random) -> list[str]:
    name = draw.choice(MODELS)
    (folder / "model.onnx").write_bytes(mutate_bytes((CORPUS / f"{name}.onnx").read_bytes(), draw))
    return _commands(draw, name)


def _model_fields(folder: Path, draw: Random) -> list[str]:
    name, other = draw.choice(MODELS), draw.choice(MODELS)
    message, donor = (onnx.load(CORPUS / f"{stem}.onnx", load_external_data=False) for stem in (name, other))
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        mutate_message(message, draw, [donor, message])
    (folder / "model.onnx").write_bytes(message.SerializeToString())
    return _commands(draw, name)


def _external_data(folder: Path, draw: Random) -> list[str]:
    message = onnx.load(CORPUS / "external.onnx", load_external_data=False)
    if draw.random() < 0.5:
        path = folder / "external.bin"
        path.write_bytes(mutate_bytes(path.read_bytes(), draw))
    else:
        mutate_message(draw.choice(message.graph.initializer), draw)
    (folder / "model.onnx").write_bytes(message.SerializeToString())
    return _commands(draw, "external")


def _target(folder: Path, draw: Random) -> list[str]:
    path = folder / "target.yaml"
    mutate = draw.choice((mutate_lines, mutate_lines, mutate_bytes))
    path.write_bytes(mutate((CORPUS / "target.yaml").read_bytes(), draw))
    if draw.random() < 0.3:
        return ["targets", "target.yaml"]
    _model(folder, "half")
    if draw.random() < 0.5:
        return ["inspect", "model.onnx", "--target", "target.yaml", "--context", "4"]
    return ["compile", "model.onnx", "--target", "target.yaml", "-o", "out", "--quantizer", "rtn"]


def _plan(folder: Path, draw: Random) -> list[str]:
    path = folder / "plan.yaml"
    mutate = draw.choice((mutate_lines, mutate_lines, mutate_bytes))
    path.write_bytes(mutate((CORPUS / "plan.yaml").read_bytes(), draw))
    _model(folder, "functions")
    arguments = ["compile", "model.onnx", "--target", "cpu-x86", "-o", "out", "--quantizer", "rtn"]
    return [*arguments, "--plan", "plan.yaml"]


def _arrays(folder: Path, draw: Random) -> list[str]:
    name = draw.choice(sorted(path.stem for path in CORPUS.glob("*.npz")))
    path = folder / "samples.npz"
    path.write_bytes(
        draw.choice((mutate_arrays, mutate_arrays, mutate_bytes))((CORPUS / f"{name}.npz").read_bytes(), draw)
    )
    _model(folder, name)
    if draw.random() < 0.5:
        return ["eval", "model.onnx", "--text", "samples.npz", "--reference", str(CORPUS / f"{name}.onnx")]
    arguments = ["compile", "model.onnx", "--target", "cpu-x86", "-o", "out", "--calibration", "samples.npz"]
    return [*arguments, "--quantizer", draw.choice(("rtn", "gptq"))]


def _text(folder: Path, draw: Random) -> list[str]:
    name = draw.choice(("words.txt", "words.jsonl"))
    mutate = draw.choice((mutate_lines, mutate_bytes))
    (folder / name).write_bytes(mutate((CORPUS / name).read_bytes(), draw))
    return _language(folder, draw, name)


def _language(folder: Path, draw: Random, text: str) -> list[str]:
    """A command that reads text, the tokenizer and the configuration."""
    _model(folder, "decoder")
    how = draw.randrange(3)
    if how == 0:
        temperature = draw.choice(("0", "0.7", "1e-40", "1e30"))
        arguments = [
            "generate",
            "model.onnx",
            "--prompt",
            "w1 w2",
            "--max-new-tokens",
            "3",
            "--temperature",
            temperature,
        ]
        return [*arguments, "--top-p", draw.choice(("1", "0.5", "1e-30"))]
    if how == 1:
        return ["eval", "model.onnx", "--text", text, "--windows", "2", "--length", "6"]
    arguments = ["compile", "model.onnx", "--target", "cpu-x86", "-o", "out", "--quantizer", "rtn"]
    return [*arguments, "--calibration", text, "--samples", "4", "--length", "6"]


def _configuration(folder: Path, draw: Random) -> list[str]:
    path = folder / draw.choice(("tokenizer.json", "config.json", "generation_config.json"))
    data = path.read_bytes()
    if draw.random() < 0.7:
        document = json.loads(data)
        for _ in range(draw.choice((1, 1, 2, 4))):
            document = mutate_document(document, draw)
        path.write_text(json.dumps(document))
    else:
        path.write_bytes(draw.choice((mutate_bytes, mutate_lines))(data, draw))
    shutil.copyfile(CORPUS / "words.txt", folder / "words.txt")
    return _language(folder, draw, "words.txt")


# How often a kind is drawn, and what makes one.
KINDS = {
    "model, bytes": (20, _model_bytes),
    "model, fields": (40, _model_fields),
    "external data": (6, _external_data),
    "target": (7, _target),
    "plan": (6, _plan),
    "samples, npz": (8, _arrays),
    "samples, text": (5, _text),
    "tokenizer, configuration": (8, _configuration),
}
