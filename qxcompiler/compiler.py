"""The pipeline: from a model, a target and samples to a compiled model and a report."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch

from qxcompiler.allocation import Plan, load_plan, uniform_plan
from qxcompiler.calibration.samples import Sample, input_specs, load_samples
from qxcompiler.errors import ModelError, UsageError
from qxcompiler.evaluation import verify
from qxcompiler.formats import Format
from qxcompiler.graph import (
    Site,
    Weight,
    check_finite,
    find_sites,
    load_model,
    model_files,
    normalize,
    raise_opset,
    save_model,
)
from qxcompiler.packing import pack
from qxcompiler.passes import FuseBias, FuseSharedInput, FuseSwiGlu, PackSites
from qxcompiler.progress import Track, silent
from qxcompiler.quantizers import (
    QuantizationResult,
    find_quantizer,
    quantize_blockwise,
    quantize_without_statistics,
)
from qxcompiler.report import Report, coverage, report_sites
from qxcompiler.runtime_ops.operators import MINIMUM_OPSET
from qxcompiler.staging import staged
from qxcompiler.targets import Target, load_target

__all__ = ["compile"]

_WRITTEN = ("model.onnx", "model.onnx.data", "plan.yaml", "report.json")
_HELD_BACK = 2  # samples that verification runs on
_COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "normalizer.json",
)


def compile(  # noqa: A001  (it is what a compiler does)
    model: str | Path | onnx.ModelProto,
    target: str | Path,
    output: str | Path,
    *,
    weights: str | None = None,
    activations: str | None = None,
    head: str | None = None,
    embedding: str | None = None,
    quantizer: str = "gptq",
    calibration: str | Path | Iterable[Mapping[str, npt.NDArray[Any]]] | None = None,
    samples: int = 48,
    length: int | None = None,
    keep: str | None = None,
    plan: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    verification: bool = True,
    track: Track = silent,
) -> Report:
    """Compile an ONNX model for a target.

    Args:
        model: the ONNX file, opset 11 or later, or a model in memory.
        target: name or file of a hardware descriptor.
        output: the folder to write `model.onnx`, its data, `plan.yaml` and `report.json` to.
        weights: weight format of the linear layers other than the head; by default what the target prefers.
        activations: `a32`, `a16` or `a8`; by default what the target prefers.
        head: format of the head, or `float`; by default what the target prefers.
        embedding: format of embeddings, or `float`; by default what the target prefers.
        quantizer: the algorithm that chooses the codes.
        calibration: a `.txt`, `.jsonl` or `.npz` file of samples, or feeds of the model; may be left out for `rtn`,
            which then counts all inputs alike.
        samples: how many samples to calibrate on, at most.
        length: tokens a sample; by default 512, or the model's context where that is shorter.
        keep: a regular expression; sites whose name or role it finds stay in float.
        plan: a plan file that says every site's scheme, instead of `weights`, `activations`, `head`, `embedding` and
            `keep`.
        device: where the algebra on weights runs: `cpu`, `cuda`, or `auto` for CUDA where there is one.
        seed: of the random generators that quantizers, and inputs made up for verification, may use.
        verification: run the compiled model beside the original before it is handed over, on samples held back from
            calibration, or on inputs made up where there are none.
        track: shows progress.

    Returns:
        what was written to `report.json`.

    Raises:
        QxcError: one of its subclasses, for whatever a user can cause; nothing is written then.
    """
    output = Path(output)
    torch.manual_seed(seed)
    algebra = _device(device)
    find_quantizer(quantizer)
    descriptor = load_target(target)
    graph = load_model(model)
    folder = None if isinstance(model, onnx.ModelProto) else Path(model).parent
    sources = [] if isinstance(model, onnx.ModelProto) else _sources(Path(model), graph, output)
    bytes_before = model.ByteSize() if isinstance(model, onnx.ModelProto) else _size(sources)
    normalize(graph)
    raise_opset(graph, MINIMUM_OPSET)
    sites = find_sites(graph)
    if not sites:
        raise ModelError(_name(graph), _without_sites(graph), "give a model with constant weights of linear layers")
    check_finite({site.weight: None for site in sites})
    wishes = {"weights": weights, "activations": activations, "head": head, "embedding": embedding, "keep": keep}
    chosen = _plan(graph, sites, descriptor, plan, wishes)
    calibrating, held_back = _samples(graph, model, calibration, samples, length, quantizer)

    with staged(output) as stage:
        results = _quantize(graph, sites, chosen, quantizer, calibrating, algebra, track)
        said = report_sites(graph, sites, chosen, results)
        packed = {weight: pack(result.weight) for weight, result in results.items()}
        PackSites({site: scheme for site in sites if (scheme := chosen[site.name])}, packed)(graph)
        FuseBias()(graph)
        FuseSwiGlu()(graph)
        FuseSharedInput()(graph)
        save_model(graph, stage)
        (stage / "plan.yaml").write_text(chosen.to_yaml(descriptor, sites), encoding="utf-8")
        if folder is not None:
            _copy_companions(folder, stage)
        verified = verify(stage / "model.onnx", model, held_back) if held_back and verification else None
        report = Report(
            target=descriptor.name,
            samples=len(calibrating),
            bytes_before=bytes_before,
            bytes_after=_size(stage.glob("model.onnx*")),
            verification=verified,
            warnings=_warnings(sites, chosen, results, verified=verified is not None),
            **asdict(said),
        )
        (stage / "report.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return report


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}", "not a device", "choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda", "PyTorch finds no CUDA device", "choose cpu, or install PyTorch for CUDA")
    return torch.device(name)


def _sources(model: Path, graph: ir.Model, output: Path) -> list[Path]:
    """The model's files, none of which the output may replace."""
    sources = model_files(model, graph)
    written = {(output / name).resolve() for name in _WRITTEN}
    for path in sources:
        if path.resolve() in written:
            raise UsageError(path, "would be overwritten by the output", "name another folder with -o")
    return sources


def _name(graph: ir.Model) -> object:
    return graph.meta.get("path") or graph.graph.name or "the model"


def _without_sites(graph: ir.Model) -> str:
    """Why there is nothing to quantize."""
    largest = coverage(graph, [], 0, {}).rows[:3]
    held = "; ".join(f"{row.share:.0%} of its bytes: {row.operator or 'others'}, {row.reason}" for row in largest)
    return f"has no linear layer or embedding to quantize ({held or 'it holds no weights'})"


def _plan(
    graph: ir.Model, sites: Sequence[Site], target: Target, plan: str | Path | None, wishes: Mapping[str, str | None]
) -> Plan:
    if plan is None:
        chosen = uniform_plan(sites, target, **wishes)
        if not any(chosen.values()):
            reason = next(iter(chosen.reasons.values()))
            problem = f"has no layer that would become smaller (the first of {len(sites)}: {reason})"
            raise ModelError(_name(graph), problem, "choose fewer bits with --weights, or keep the model as it is")
    elif given := [f"--{name}" for name, wish in wishes.items() if wish]:
        raise UsageError("--plan", "says every site's scheme already", f"leave out {' and '.join(given)}")
    else:
        chosen = load_plan(Path(plan), target, sites)
    chosen.check(target, sites, plan or "the plan")
    return chosen


def _samples(
    graph: ir.Model,
    model: str | Path | onnx.ModelProto,
    calibration: str | Path | Iterable[Mapping[str, npt.NDArray[Any]]] | None,
    samples: int,
    length: int | None,
    quantizer: str,
) -> tuple[list[Sample], list[Sample]]:
    """Samples to calibrate on, and those held back for verification; a single sample serves for both."""
    if calibration is None:
        if quantizer != "rtn":
            raise UsageError(
                f"--quantizer {quantizer}",
                "needs samples",
                "give --calibration FILE, or choose --quantizer rtn",
            )
        return [], []
    loaded = load_samples(calibration, input_specs(graph), model, samples=samples + _HELD_BACK, length=length or 512)
    held_back = min(_HELD_BACK, len(loaded) - 1)
    return (loaded[:-held_back], loaded[-held_back:]) if held_back else (loaded, loaded)


def _quantize(
    graph: ir.Model,
    sites: Sequence[Site],
    plan: Plan,
    quantizer: str,
    samples: Sequence[Sample],
    device: torch.device,
    track: Track,
) -> dict[Weight, QuantizationResult]:
    formats: dict[Weight, Format] = {site.weight: scheme.format for site in sites if (scheme := plan[site.name])}
    if samples:
        return quantize_blockwise(graph, sites, formats, quantizer, samples, device, track)
    return {
        weight: quantize_without_statistics(weight, fmt, device)
        for weight, fmt in track(list(formats.items()), "quantize")
    }


def _warnings(
    sites: Sequence[Site], plan: Plan, results: Mapping[Weight, QuantizationResult], verified: bool
) -> list[str]:
    found = [
        f"{site.name}: no statistics in a subgraph, rounded to nearest"
        for site in sites
        if site.in_subgraph and plan[site.name] and results[site.weight].quantizer == "rtn"
    ]
    if not any(plan.values()):
        found.append("nothing was quantized: the plan leaves every site in floating point")
    if not verified:
        found.append("not verified: without --calibration there are no samples to run on")
    return found


def _copy_companions(source: Path, stage: Path) -> None:
    """Tokenizer and configuration go with the model, as far as they lie beside it."""
    for name in _COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, stage / name)


def _size(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)
