"""The pipeline: from a model, a target and samples to a compiled model and a report."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

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
from qxcompiler.report import Report, report_sites
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
)


def compile(  # noqa: A001  (it is what a compiler does)
    model: str | Path,
    target: str | Path,
    output: str | Path,
    *,
    weights: str | None = None,
    activations: str | None = None,
    quantizer: str = "gptq",
    calibration: str | Path | None = None,
    samples: int = 48,
    length: int = 512,
    keep: str | None = None,
    plan: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    track: Track = silent,
) -> Report:
    """Compile an ONNX model for a target.

    Args:
        model: the ONNX file, opset 11 or later.
        target: name or file of a hardware descriptor.
        output: the folder to write `model.onnx`, `model.onnx.data`, `plan.yaml`, `report.json` to.
        weights: weight format of the linear layers other than the head; by default what the target prefers.
        activations: `a32`, `a16` or `a8`; by default what the target prefers.
        quantizer: the algorithm that chooses the codes.
        calibration: a `.txt`, `.jsonl` or `.npz` file of samples; may be left out for `rtn`, which then counts all
            inputs alike.
        samples: how many samples to calibrate on, at most.
        length: tokens a sample.
        keep: a regular expression; sites whose name or role it finds stay in float.
        plan: a plan file that says every site's scheme, instead of `weights`, `activations` and `keep`.
        device: where the algebra on weights runs: `cpu`, `cuda`, or `auto` for CUDA where there is one.
        seed: of the random generators that quantizers may use.
        track: shows progress.

    Returns:
        what was written to `report.json`.

    Raises:
        QxcError: one of its subclasses, for whatever a user can cause; nothing is written then.
    """
    model, output = Path(model), Path(output)
    torch.manual_seed(seed)
    algebra = _device(device)
    find_quantizer(quantizer)
    descriptor = load_target(target)
    graph = load_model(model)
    sources = _sources(model, graph, output)
    normalize(graph)
    raise_opset(graph, MINIMUM_OPSET)
    sites = find_sites(graph)
    if not sites:
        raise ModelError(model, "has no linear layer or embedding to quantize", "give a model with constant weights")
    check_finite({site.weight: None for site in sites})
    chosen = _plan(sites, descriptor, plan, weights, activations, keep)
    calibrating, held_back = _samples(graph, model, calibration, samples, length, quantizer)

    with staged(output) as stage:
        results = _quantize(graph, sites, chosen, quantizer, calibrating, algebra, track)
        packed = {weight: pack(result.weight) for weight, result in results.items()}
        PackSites({site: scheme for site in sites if (scheme := chosen[site.name])}, packed)(graph)
        FuseBias()(graph)
        FuseSwiGlu()(graph)
        FuseSharedInput()(graph)
        save_model(graph, stage)
        (stage / "plan.yaml").write_text(chosen.to_yaml(descriptor, sites), encoding="utf-8")
        _copy_companions(model.parent, stage)
        rows, bits_per_weight = report_sites(sites, chosen, results)
        report = Report(
            target=descriptor.name,
            samples=len(calibrating),
            bits_per_weight=bits_per_weight,
            bytes_before=_size(sources),
            bytes_after=_size(stage.glob("model.onnx*")),
            verification=verify(stage / "model.onnx", model, held_back) if held_back else None,
            warnings=_warnings(sites, chosen, results, verified=bool(held_back)),
            sites=rows,
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


def _plan(
    sites: Sequence[Site],
    target: Target,
    plan: str | Path | None,
    weights: str | None,
    activations: str | None,
    keep: str | None,
) -> Plan:
    if plan is None:
        chosen = uniform_plan(sites, target, weights, activations, keep)
    elif weights or activations or keep:
        raise UsageError("--plan", "says every site's scheme already", "leave out --weights, --activations and --keep")
    else:
        chosen = load_plan(Path(plan), sites)
    chosen.check(target, sites, plan or "the plan")
    return chosen


def _samples(
    graph: ir.Model, model: Path, calibration: str | Path | None, samples: int, length: int, quantizer: str
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
    loaded = load_samples(calibration, input_specs(graph), model, samples=samples + _HELD_BACK, length=length)
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
