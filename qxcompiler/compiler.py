"""The pipeline: from a model, a target and samples to a compiled model and a report."""

from __future__ import annotations

import hashlib
import json
import logging
import resource
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from qxcompiler.allocation import FLOAT, TERMS, Plan, Question, find_allocation, load_plan
from qxcompiler.calibration import walk
from qxcompiler.calibration.made_up import made_up_samples
from qxcompiler.calibration.parts import FrugalModel
from qxcompiler.calibration.samples import Sample, load_mixed
from qxcompiler.calibration.segment_runner import TokenWeights
from qxcompiler.companions import COMPANIONS, CONFIGURATIONS, copy_files
from qxcompiler.config import CONFIG, SELF, Config, made_with, save_config
from qxcompiler.cost import untold_sizes
from qxcompiler.derivatives import (
    TorchModel,
    UndifferentiableError,
    attention_weights,
    compared_output,
    token_weights,
)
from qxcompiler.errors import CalibrationError, ModelError, UnsupportedByTargetError, UsageError
from qxcompiler.evaluation import Verification, verify
from qxcompiler.evaluation.encoder_decoder import DECODER_WITH_PAST, ENCODER, EncoderDecoder, is_encoder_decoder
from qxcompiler.evaluation.running import Runner
from qxcompiler.formats import CACHE_FORMATS, STATIC, Format
from qxcompiler.gathering import HELD_BACK, WRITTEN, Calibration, default_calibration, files_of, gather_samples
from qxcompiler.genai import GENAI_FILES, write_genai_files
from qxcompiler.graph import (
    Site,
    Weight,
    check_unchanged,
    find_sites,
    load_model,
    model_files,
    normalize,
    not_finite,
    overridable_inputs,
    raise_opset,
    save_model,
)
from qxcompiler.options import LIMITS, Options
from qxcompiler.passes import PackSites, pipelines
from qxcompiler.passes.fuse_attention import FuseAttention
from qxcompiler.passes.integer_layers import IntegerLayers
from qxcompiler.passes.quantize_cache import QuantizeCache
from qxcompiler.passes.static_activations import StaticActivations, calibrate_grids
from qxcompiler.passes.unfold import Unfold
from qxcompiler.perplexity_limit import smallest_within
from qxcompiler.products import fast_products
from qxcompiler.progress import Track, silent
from qxcompiler.quantizers import (
    Need,
    QuantizationResult,
    find_quantizer,
    quantize_segmentwise,
    quantize_without_statistics,
    sharing_a_table,
)
from qxcompiler.recipes import Recipe, load_recipe
from qxcompiler.report import (
    CSV,
    PICTURE,
    Front,
    Report,
    coverage,
    find_front,
    parse_budgets,
    plan_file,
    report_cache,
    report_costs,
    report_sites,
)
from qxcompiler.runtime_ops.operators import MINIMUM_OPSET
from qxcompiler.staging import WORK, check_sources, output_folder, staged
from qxcompiler.targets import Target, descriptor_files, find_target, load_target
from qxcompiler.tuning import Tuner
from qxcompiler.work_folder import WorkFolder, fingerprint
from qxcompiler_runtime.caches import is_past

__all__ = ["compile", "compile_folder", "pareto"]

_log = logging.getLogger(__name__)

# What a plan leaves nothing of.
_WISHES = {name: f"--{name}" for name in ("weights", "activations", "head", "embedding", "keep", "allocation")}
_WISHES |= LIMITS | {"error": "--error"}
_OF_A_BUDGET = {*LIMITS, "error", "allocation"}  # beside which a plan pins some sites
_SUSPECTS = 3  # sites named where verification fails
_COMPARED_ON = 12  # samples that formats are compared on, at most: more take longer, and choose much the same


@fast_products()
def compile(  # noqa: A001  (it is what a compiler does)
    model: str | Path | onnx.ModelProto,
    target: str | Path,
    output: str | Path,
    *,
    calibration: Calibration | None = None,
    recipe: str | Path | None = None,
    restart: bool = False,
    track: Track = silent,
    **options: Any,
) -> Report:
    """Compile an ONNX model for a target.

    A compile that was killed goes on from what it had finished when it is started again with the same inputs and
    options, and writes the same bytes as one that was not.

    Args:
        model: the ONNX file, opset 11 or later, or a model in memory.
        target: name or file of a hardware descriptor.
        output: the folder to write `model.onnx`, its data, `plan.yaml`, `report.json`, `compile.yaml`, what the
            model wrote, `self-calibration.jsonl`, and what onnxruntime-genai reads beside a language model to.
        calibration: a `.txt`, `.jsonl` or `.npz` file of samples, several such files, which are mixed evenly, or feeds
            of the model. `self` stands for text that a language model writes, and is what such a model is calibrated
            on where samples are needed and none given. May be left out for `rtn`, which then counts all inputs alike.
        recipe: name or file of a recipe, options that those given here go before; if left out, what the target prefers,
            or else `allocation="budget"`, unless `weights` or `plan` is given, or the quantizer takes no samples.
        restart: forget what an earlier compile, which was killed, had finished.
        track: shows progress.
        options: the fields of `qxcompiler.options.Options`.

    Returns:
        what was written to `report.json`.

    Raises:
        QxcError: one of its subclasses, for whatever a user can cause; nothing is written then.
    """
    output = output_folder(output)
    hardware = load_target(target)
    chosen = _recipe(recipe, hardware, options)
    compiler = _Compiler(hardware, chosen.applied(options), track)
    graph = load_model(model)
    original = model if isinstance(model, onnx.ModelProto) else Path(model)
    if calibration is None:
        calibration = default_calibration(graph, original, compiler.options, writes=chosen.writes)
        compiler = _Compiler(hardware, chosen.applied(options, samples=calibration is not None), track)
    files = model_files(original, graph) if isinstance(original, Path) else []
    names = ["model.onnx", "plan.yaml", "report.json", CONFIG, *GENAI_FILES]
    if SELF in files_of(calibration):
        names.append(WRITTEN)
    check_sources([*files, *files_of(calibration)], output, names)
    with staged(output, names, restart=restart) as stage:
        config = _config(original if isinstance(original, Path) else None, target, calibration, compiler.options, files)
        graph, report = compiler.compile(graph, original, calibration, stage, "model.onnx", config)
        save_config(config, stage, output)
        if isinstance(original, Path):
            copy_files(original.parent, stage, (*CONFIGURATIONS, *COMPANIONS))
            write_genai_files(graph, original.parent, stage)
    return report


@fast_products()
def compile_folder(
    folder: str | Path,
    target: str | Path,
    output: str | Path,
    *,
    calibration: str | Path | Sequence[str | Path] | None = None,
    recipe: str | Path | None = None,
    restart: bool = False,
    track: Track = silent,
    **options: Any,
) -> dict[str, Report]:
    """Compile every model of a folder, such as the encoder and the decoders of one model.

    An encoder-decoder is calibrated as a whole: the encoder on the samples, the decoder on what the encoder makes of
    them and on the text that the model then writes. Weights that several files have alike get the same codes.

    Args:
        folder: holds the ONNX files, whose names the output keeps, and the tokenizer and configuration.
        target, output, calibration, recipe, restart, track, options: as for `compile`, but a `plan` serves one file
            only.

    Returns:
        By the name of each file, what was written to `NAME.report.json` for `NAME.onnx`; its plan is `NAME.plan.yaml`.

    Raises:
        QxcError: one of its subclasses, for whatever a user can cause; nothing is written then.
    """
    folder, output = Path(folder), output_folder(output)
    files = sorted(folder.glob("*.onnx"))
    if not files:
        raise ModelError(folder, "holds no .onnx file", "give an ONNX file, or a folder with some")
    hardware = load_target(target)
    chosen = _recipe(recipe, hardware, options)
    # a model of several writes for what needs samples alone, whatever the recipe: `compile.yaml` has one line for all
    compiler = _Compiler(hardware, chosen.applied(options, samples=calibration is not None), track, several=True)
    if compiler.options.plan:
        raise UsageError("--plan", "is a plan of one model", "compile the folder's files one by one")
    graphs = {file: load_model(file) for file in files}
    names = [f"{file.stem}.{kind}" for file in files for kind in ("onnx", "plan.yaml", "report.json")] + [CONFIG]
    every_file = [path for file, graph in graphs.items() for path in model_files(file, graph)]
    check_sources(every_file, output, names)
    reports = {}
    with staged(output, names, restart=restart) as stage:
        config = _config(folder, target, calibration, compiler.options, every_file)
        samples = compiler.samples_of_parts(folder, calibration) if is_encoder_decoder(folder) and calibration else {}
        for file, graph in graphs.items():
            given = samples.get(file.name, calibration)
            if given is None:
                given = default_calibration(graph, file, compiler.options, writes=False)
            _, reports[file.name] = compiler.compile(graph, file, given, stage, file.name, config)
        save_config(config, stage, output)
        copy_files(folder, stage, (*CONFIGURATIONS, *COMPANIONS))
    return reports


@fast_products()
def pareto(
    model: str | Path | onnx.ModelProto,
    target: str | Path,
    output: str | Path,
    *,
    budgets: str | Sequence[float],
    calibration: Calibration | None = None,
    recipe: str | Path | None = None,
    track: Track = silent,
    **options: Any,
) -> Front:
    """Find the best plan for each of several budgets; errors are measured once, and nothing is compiled.

    Args:
        model, target, calibration, recipe, track, options: as for `compile`; `bits_per_weight` marks a plan.
        output: the folder to write `pareto.csv`, `pareto.svg` and the plans (`plan-3.25.yaml`) to, and what the model
            wrote.
        budgets: bits a weight, one by one or as `2.5:5:0.25`.

    Returns:
        the plans' sizes and errors, beside those of one format everywhere.

    Raises:
        QxcError: one of its subclasses, for whatever a user can cause; nothing is written then.
    """
    output = output_folder(output)
    chosen = load_recipe(recipe) if recipe else Recipe()
    bits = parse_budgets(budgets)
    given = chosen.options | options
    for name in ("plan", *(limit for limit in LIMITS if limit != "bits_per_weight")):
        if given.get(name) is not None:
            raise UsageError(f"option {name}", "is not for several budgets", "leave it out")
    marked = given.pop("bits_per_weight", None)
    asked = Options.checked(given | {"bits_per_weight": bits[0] if marked is None else marked, "tune": 0})
    compiler = _Compiler(load_target(target), asked, track)
    graph = load_model(model)
    original = model if isinstance(model, onnx.ModelProto) else Path(model)
    if calibration is None:
        calibration = default_calibration(graph, original, asked, writes=chosen.writes)
        if calibration is None and chosen.writes and options.get("quantizer") is None:
            compiler = _Compiler(compiler.target, asked.model_copy(update={"quantizer": "rtn"}), track)
    files = model_files(original, graph) if isinstance(original, Path) else []
    names = [CSV, PICTURE, *map(plan_file, bits), *([WRITTEN] if SELF in files_of(calibration) else [])]
    check_sources([*files, *files_of(calibration)], output, names)
    with staged(output, names) as stage:
        question, _, _ = compiler.ask(graph, original, calibration, stage / WRITTEN)
        front = find_front(question, bits, marked)
        front.write(stage)
    return front


@dataclass(frozen=True)
class _Job:
    """What a compile has, whatever the plan.

    Attributes:
        original: the model's file, or itself in memory.
        samples: all but those held back.
        held_back: what a result is verified on.
        bytes_before: size of the model's files.
        name: of the compiled model's file.
        prefix: of the names of what is written beside it.
        config: the compile as its `compile.yaml` says it.
        warnings: what a user should know.
        work: the folder for what is finished while the rest is not.
    """

    original: Path | onnx.ModelProto
    samples: list[Sample]
    held_back: list[Sample]
    bytes_before: int
    name: str
    prefix: str
    config: Config
    warnings: list[str]
    work: Path


class _Compiler:
    """Compiles models with the same options; weights that several of them have alike get the same codes."""

    def __init__(self, target: Target, options: Options, track: Track, *, several: bool = False) -> None:
        torch.manual_seed(options.seed)
        find_quantizer(options.quantizer)
        self.allocate = find_allocation(_allocation(options))
        given = {field: name for field, name in _WISHES.items() if _is_chosen(options, field)}
        if options.plan and not given.keys() <= (_OF_A_BUDGET if options.limits else set()):
            raise UsageError("--plan", "says every site's scheme already", f"leave out {' and '.join(given.values())}")
        if several and options.tune:
            raise UsageError("--tune", "takes a single model", "give the ONNX file instead of the folder")
        if several and (of_one := [option for option in options.limits if option != LIMITS["bits_per_weight"]]):
            raise UsageError(of_one[0], "is a limit for a single model", "give the ONNX file instead of the folder")
        if options.max_perplexity_increase is not None and _allocation(options) != "budget":
            remedy = f"leave out --allocation {options.allocation}"
            raise UsageError(LIMITS["max_perplexity_increase"], "is kept by the allocation budget alone", remedy)
        if _is_chosen(options, "error") and not (options.budget_option or options.plan):
            remedy = f"give --allocation budget, or one of {', '.join(LIMITS.values())}"
            raise UsageError(f"--error {options.error}", "has no budget", remedy)
        _check_kept(options, target)
        self.target, self.options, self.track = target, options, track
        self.device = _device(options.device)
        self.several = several
        self.done: dict[bytes, QuantizationResult] = {}
        self.manifests: list[str] = []  # of the models before: what they have in common is quantized as there

    def compile(
        self,
        graph: ir.Model,
        original: Path | onnx.ModelProto,
        calibration: Calibration | None,
        stage: Path,
        name: str,
        config: Config,
    ) -> tuple[ir.Model, Report]:
        """Write the compiled model, its plan and its report to `stage`; returns its graph, too."""
        _check_keeps(graph, original, self.options.kv)
        bytes_before = _bytes(original, graph)
        warnings = [f"input {name}: its default becomes constant" for name in overridable_inputs(graph)]
        prefix = "" if name == "model.onnx" else f"{Path(name).stem}."
        written = stage / f"{prefix}{WRITTEN}"
        question, samples, held_back = self.ask(graph, original, calibration, written)
        if written.exists() and files_of(calibration) == [SELF]:
            warnings.append(f"calibrated on text that the model wrote ({written.name}): better give what it will read")
        if question.incomparable:
            remedy = "give --error output to compare formats without derivatives"
            warnings.append(f"one format for all linear layers: {question.incomparable}: {remedy}")
        work = stage.parent / WORK / name
        job = _Job(original, samples, held_back, bytes_before, name, prefix, config, warnings, work)
        if self.options.max_perplexity_increase is None:
            report = self._carry_out(graph, question.sites, self._plan(question), job, stage)
        else:

            def carry_out(plan: Plan, folder: Path) -> tuple[tuple[ir.Model, Report], Path]:
                fresh = load_model(original)
                sites, of_plan = self._sites(fresh), replace(job, work=work.with_name(f"{name}-{folder.name}"))
                done = self._carry_out(fresh, sites, self._checked(plan, question), of_plan, folder)
                return (fresh, done), folder / name

            reference = Runner(FrugalModel(_runnable(original)))
            (graph, report), limit = smallest_within(question, reference, held_back, stage, carry_out)
            report = report.model_copy(update={"perplexity_limit": limit})
        (stage / f"{prefix}report.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return graph, report

    def _carry_out(self, graph: ir.Model, sites: Sequence[Site], plan: Plan, job: _Job, stage: Path) -> Report:
        """Write the compiled model and its plan to `stage`."""
        options, original, held_back, warnings = self.options, job.original, job.held_back, list(job.warnings)
        calibrating = _spaced(job.samples, options.samples)
        counts = self._token_weights(graph, sites, calibrating, find_quantizer(options.quantizer).needs)
        made_up = not held_back
        unrunnable = [scheme.format for scheme in plan.values() if scheme and not self.target.emits.runs(scheme.format)]
        if not options.verification:
            warnings.append("not verified: --no-verify")
        elif unrunnable:
            warnings.append(
                f"not verified: onnxruntime cannot run {unrunnable[0].name} in dialect {self.target.dialect}"
            )
        elif made_up:
            try:
                held_back = made_up_samples(graph, _runnable(original), seed=options.seed)
            except CalibrationError as error:
                warnings.append(f"not verified: {error}")

        sites, counts = self._raise_opset(graph, sites, counts, plan)
        schemes = {site: scheme for site in sites if (scheme := plan[site.name])}
        if lacking := _lacking(graph, self.target, schemes):
            warnings.append(lacking)
        static = {site: scheme for site, scheme in schemes.items() if scheme.activation == STATIC}
        if static and not calibrating:
            raise UsageError(f"activations as {STATIC}", "need samples", "give --calibration FILE")
        _log.info("calibrated on %d samples, verified on %d", len(calibrating), len(held_back))
        planned = walk.Calibration(sites, calibrating, self.device, self.track, schemes)
        preparing = pipelines.before_calibration(planned)
        pipelines.run(preparing, graph)
        passes = [f"{type(each).__module__}.{type(each).__qualname__}" for each in preparing]
        manifest = self._manifest(graph, original, plan, job.samples, passes, job.config)
        work = WorkFolder(job.work, manifest)
        formats: dict[Weight, Format] = {site.weight: scheme.format for site, scheme in schemes.items()}
        tuner = Tuner(graph, sites, formats, _spaced(job.samples, options.tune), self.device) if options.tune else None
        results = self._quantize(graph, sites, formats, calibrating, counts, work)
        tuning = None
        if tuner:
            outputs = Runner(FrugalModel(_runnable(original))).prepare(tuner.samples, [tuner.output])
            names = {weight: f"{name}.tuned" for weight, name in _file_names(formats).items()}
            results, tuning = tuner.tune(
                results,
                lambda index: outputs(index)[0],
                options.seed,
                self.track,
                lambda weight, result: work.keep(names[weight], result),
            )
        said = report_sites(graph, sites, plan, results, self.target.emits)
        packed = {weight: result.packed for weight, result in results.items()}
        if static:
            nodes = {site.node for site in static}
            grids, left = calibrate_grids(graph, nodes, calibrating, self.track, stage)
            warnings += [
                f"{_some([value.name or '' for value in values])}: in float, {why}" for why, values in left.items()
            ]
            pipelines.run([IntegerLayers(static, packed, grids), StaticActivations(nodes, grids)], graph)
        others = {site: scheme for site, scheme in schemes.items() if site not in static}
        packing = PackSites(others, packed, self.target.dialect)
        plain = options.plain or self.target.dialect != "qxc"
        cache = CACHE_FORMATS.get(options.kv or "")
        finishing = pipelines.after_packing([*held_back, *calibrating], plain=plain, cache=cache)
        pipelines.run([packing, *finishing], graph)
        warnings += [note for each in finishing if isinstance(each, FuseAttention | Unfold) for note in each.notes]
        save_model(graph, stage, job.name)

        check_unchanged(graph)
        verification = None
        if options.verification and held_back and not unrunnable:
            try:
                verification = self._verify(stage / job.name, original, held_back, made_up, sites, plan, results)
            except ModelError as error:  # of the original
                warnings.append(f"not verified: {error}")
            check_unchanged(graph)
        bytes_after = _size(stage.glob(f"{job.name}*"))
        if options.max_size is not None and bytes_after > options.max_size:
            problem = f"the files take {bytes_after} bytes"  # what was reckoned with is an upper bound for known passes
            raise UsageError(f"--max-size {options.max_size}B", problem, "give less than the model may take")
        if bytes_after >= job.bytes_before:
            warnings.append(f"the compiled model is not smaller: {job.bytes_before} bytes before, {bytes_after} after")
        report = Report(
            target=self.target.name,
            samples=len(calibrating),
            bytes_before=job.bytes_before,
            bytes_after=bytes_after,
            peak_memory_bytes=_peak_memory(),
            allocation=plan.account,
            **report_costs(graph, self.target, untold_sizes(graph, [*held_back, *job.samples])),
            **report_cache(graph),
            tuning=tuning,
            verification=verification,
            warnings=[*_warnings(sites, plan, results), *warnings],
            **asdict(said),
        )
        (stage / f"{job.prefix}plan.yaml").write_text(plan.to_yaml(self.target, sites), encoding="utf-8")
        return report

    def ask(
        self, graph: ir.Model, original: Path | onnx.ModelProto, calibration: Calibration | None, written: Path
    ) -> tuple[Question, list[Sample], list[Sample]]:
        """Normalize a model and find its sites: what a plan is asked for, all samples, and those held back."""
        options = self.options
        sites = self._sites(graph)
        _log.info("%d nodes, opset %d", graph.graph.num_nodes(), graph.opset_imports.get("", 0))
        roles = Counter(site.role for site in sites)
        _log.info("%d sites: %s", len(sites), ", ".join(f"{count} {role}" for role, count in roles.items()))
        if not sites:
            raise ModelError(_subject(graph), _without_sites(graph), "give a model with constant weights")
        pinned = self._given_plan(options.plan, sites, partial=True) if options.plan and options.limits else None
        samples, held_back = gather_samples(graph, original, calibration, written, options, self.track)
        compared_on = _spaced(samples, min(options.samples, _COMPARED_ON))
        needs = find_quantizer(options.quantizer).needs if _allocation(options) != "uniform" else frozenset()
        if _allocation(options) == "budget":
            needs |= TERMS[options.error].needs
        incomparable = ""
        try:
            counts = self._token_weights(graph, sites, compared_on, needs)
        except UndifferentiableError as error:
            if options.limits or _is_chosen(options, "error"):
                raise
            counts, incomparable = {}, f"{error.subject} {error.problem}"
        planning = walk.Calibration(sites, compared_on, self.device, self.track, token_weights=counts)
        question = Question(graph, sites, self.target, options, planning, pinned, incomparable)
        return question, samples, held_back

    def _sites(self, graph: ir.Model) -> list[Site]:
        """Normalize a model, and find its sites."""
        normalize(graph)
        raise_opset(graph, MINIMUM_OPSET)
        if self.target.emits.every_kind:
            pipelines.run(pipelines.before_sites(), graph)
        return find_sites(graph, every_kind=self.target.emits.every_kind)

    def samples_of_parts(self, folder: Path, calibration: str | Path | Sequence[str | Path]) -> dict[str, list[Sample]]:
        """What each file of an encoder-decoder sees on the calibration samples."""
        model = EncoderDecoder(folder)
        options = self.options
        if SELF in files_of(calibration) or not files_of(calibration):
            raise UsageError("--calibration", "takes a file for the models of a folder", "give a .txt or .npz file")
        samples = load_mixed(
            files_of(calibration),
            model.inputs,
            folder / ENCODER,
            samples=options.samples + HELD_BACK,
            length=options.length,
            seed=options.seed,
        )
        parts: dict[str, list[Sample]] = {}
        for sample in self.track(samples, "samples"):
            for file, feed in model.feeds(sample).items():
                parts.setdefault(file, []).append(feed)
            # a past is large, and the decoder with it has the weights of the one without: enough to verify it on
            parts.get(DECODER_WITH_PAST, [])[: -HELD_BACK - 1] = []
        return parts

    def _token_weights(
        self, graph: ir.Model, sites: Sequence[Site], samples: Sequence[Sample], needs: frozenset[Need]
    ) -> TokenWeights:
        """How much each token counts, if that is needed."""
        if "token weights" not in needs:
            return {}
        model = TorchModel(graph, sites, compared_output(graph), self.device)
        weights = token_weights(model, samples, self.options.seed, self.track)
        if "attention weights" in needs:
            weights = {**weights, **attention_weights(model, samples, self.options.seed, self.track)}
        return weights

    def _plan(self, question: Question) -> Plan:
        options = self.options
        if options.plan is not None and not options.limits:
            return self._given_plan(options.plan, question.sites)
        return self._checked(self.allocate(question), question)

    def _checked(self, plan: Plan, question: Question) -> Plan:
        """What an allocation answered, and what the user decided on."""
        sites = question.sites
        if question.pinned is not None:
            plan.pin(question.pinned)
        infinite = not_finite(sites)
        plan.leave((site for site in sites if site.weight in infinite), "holds infinities")
        if not any(plan.values()):
            reason = next(iter(plan.reasons.values()))
            problem = f"has no layer that would become smaller (the first of {len(sites)}: {reason})"
            raise ModelError(_subject(question.model), problem, "choose other --weights, or keep the model as it is")
        plan.check(self.target, sites)
        return plan

    def _given_plan(self, path: Path, sites: Sequence[Site], *, partial: bool = False) -> Plan:
        """What the user says of all sites, or of some."""
        plan = load_plan(path, self.target, sites, partial=partial)
        named = [site for site in sites if site.name in plan]
        infinite = not_finite(site for site in named if plan[site.name])
        if found := next((site for site in named if site.weight in infinite and plan[site.name]), None):
            problem = f"quantizes {found.weight.name}, which holds infinities"
            raise ModelError(plan.place(found.name), problem, "leave it in float")
        plan.check(self.target, named)
        return plan

    def _raise_opset(
        self, graph: ir.Model, sites: Sequence[Site], counts: TokenWeights, plan: Plan
    ) -> tuple[Sequence[Site], TokenWeights]:
        """Raise the opset as far as what the sites become needs it; the same sites in the graph that this gives."""
        opset = max((self.target.emits.opset(site, scheme) for site in sites if (scheme := plan[site.name])), default=0)
        if opset <= graph.opset_imports.get("", 0):
            return sites, counts
        raise_opset(graph, opset)
        now = {site.name: site for site in find_sites(graph, every_kind=self.target.emits.every_kind)}
        return [now[site.name] for site in sites], {now[site.name]: count for site, count in counts.items()}

    def _manifest(
        self,
        graph: ir.Model,
        original: Path | onnx.ModelProto,
        plan: Plan,
        samples: Sequence[Sample],
        passes: Sequence[str],
        config: Config,
    ) -> dict[str, Any]:
        """All that the codes of a model depend on."""
        options, made_with = self.options, config.made_with
        assert made_with is not None
        model = (
            hashlib.sha256(original.SerializeToString(deterministic=True)).hexdigest()
            if isinstance(original, onnx.ModelProto)
            else [made_with.sha256[str(path)] for path in model_files(original, graph)]
        )
        manifest = {
            "versions": made_with.versions,
            "model": model,
            "samples": fingerprint(samples),
            "dialect": self.target.dialect,
            "schemes": {site: str(scheme or FLOAT) for site, scheme in plan.items()},
            "options": {
                "quantizer": options.quantizer,
                "samples": options.samples,
                "tune": options.tune,
                "device": str(self.device),
                "seed": options.seed,
            },
            "passes": list(passes),
            "models before": list(self.manifests),
        }
        self.manifests.append(hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest())
        return manifest

    def _quantize(
        self,
        graph: ir.Model,
        sites: Sequence[Site],
        formats: Mapping[Weight, Format],
        samples: Sequence[Sample],
        token_weights: TokenWeights,
        work: WorkFolder,
    ) -> dict[Weight, QuantizationResult]:
        names = _file_names(formats)
        digests = {weight: _digest(weight, fmt) for weight, fmt in formats.items()} if self.several else {}
        known = {weight: self.done[digest] for weight, digest in digests.items() if digest in self.done}
        for weight, fmt in formats.items():
            if weight not in known and (finished := work.find(names[weight], fmt)):
                known[weight] = finished
        if known:
            _log.info("%d of %d weights were finished before", len(known), len(formats))

        def keep(weight: Weight, result: QuantizationResult) -> QuantizationResult:
            how = f", {result.reason}" if result.reason else ""
            _log.info(
                "%s: %s by %s", weight.name, formats[weight].name, f"{result.quantizer}, error {result.error:.4f}{how}"
            )
            return work.keep(names[weight], result)

        method = self.options.quantizer
        if samples:
            if "token weights" not in find_quantizer(method).needs:
                token_weights = {}
            results = quantize_segmentwise(
                graph, sites, formats, method, samples, self.device, self.track, token_weights, known, keep
            )
        else:
            looked_up = {site.weight for site in sites if site.kind == "embedding"}

            results = {}
            for weights in self.track(sharing_a_table(sites, formats), "quantize"):
                if not all(weight in known for weight in weights):
                    how = "rtn" if weights[0] in looked_up else method
                    found = quantize_without_statistics(weights, formats[weights[0]], self.device, how)
                    for weight, result in zip(weights, found, strict=True):
                        known[weight] = known.get(weight) or keep(weight, result)
                results |= {weight: known[weight] for weight in weights}
            results = {weight: results[weight] for weight in formats}
        self.done |= {digest: results[weight] for weight, digest in digests.items()}
        return results

    def _verify(
        self,
        compiled: Path,
        original: Path | onnx.ModelProto,
        samples: Sequence[Sample],
        made_up: bool,
        sites: Sequence[Site],
        plan: Plan,
        results: Mapping[Weight, QuantizationResult],
    ) -> Verification:
        worst = sorted((site for site in sites if plan[site.name]), key=lambda site: -results[site.weight].error)
        bits = min((scheme.format.bits for scheme in plan.values() if scheme), default=32)
        suspects = [site.name for site in worst[:_SUSPECTS]]
        library = self.target.emits.library
        return verify(
            compiled, _runnable(original), samples, bits=bits, made_up=made_up, suspects=suspects, library=library
        )


def _check_kept(options: Options, target: Target) -> None:
    """Refuse what the target or the other options leave no way to keep keys and values as."""
    if options.kv is not None and options.kv not in target.kv_cache:
        problem = f"holds no keys and values in {options.kv}"
        raise UnsupportedByTargetError(f"target {target.name}", problem, f"choose among {', '.join(target.kv_cache)}")
    if options.kv in CACHE_FORMATS and (options.plain or target.dialect != "qxc"):
        remedy = "leave out --plain" if options.plain else "choose a target of dialect qxc"
        raise UsageError(f"--kv {options.kv}", "needs attention in one operator", remedy)


def _check_keeps(graph: ir.Model, original: Path | onnx.ModelProto, kv: str | None) -> None:
    """Refuse a model that keeps nothing, numbers of another type than asked for, or what no operator of ours keeps."""
    types = {value.dtype for value in graph.graph.inputs if is_past(value.name or "")}
    if kv is not None and not types:
        raise ModelError(_subject(graph), "keeps no keys and values", f"leave out --kv {kv}")
    others = sorted(each.numpy().name for each in types if each is not None and each.numpy().name != kv)
    if kv is not None and kv not in CACHE_FORMATS and others:
        problem = f"keeps keys and values as {others[0]}"
        raise ModelError(_subject(graph), problem, f"leave out --kv, or choose among {', '.join(CACHE_FORMATS)}")
    if kv in CACHE_FORMATS:  # weights may take hours: see first whether the last pass will find what it needs
        trial = load_model(original)
        normalize(trial)
        raise_opset(trial, MINIMUM_OPSET)
        pipelines.run([Unfold(), FuseAttention(), QuantizeCache(CACHE_FORMATS[kv])], trial)


def _is_chosen(options: Options, field: str) -> bool:
    return bool(getattr(options, field) != Options.model_fields[field].default)


def _allocation(options: Options) -> str:
    """The name of the allocation that the options ask for."""
    if options.allocation == "uniform" and options.limits:
        raise UsageError("--allocation uniform", "keeps no budget", f"leave out --allocation, or {options.limits[0]}")
    return options.allocation or ("budget" if options.budget_option else "uniform")


def _file_names(formats: Mapping[Weight, Format]) -> dict[Weight, str]:
    """Of quantized weights in the work folder."""
    return {weight: f"{index:05}" for index, weight in enumerate(formats)}


def _spaced(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most so many of them, spaced evenly from the first on."""
    count = min(count, len(samples))
    return [samples[index * len(samples) // count] for index in range(count)]


def _recipe(given: str | Path | None, target: Target, options: Mapping[str, Any]) -> Recipe:
    """The recipe that was asked for, or else the one that the target prefers, or else a format for each layer.

    That takes samples, and is left out where the quantizer needs none.
    """
    if named := given or target.preferred.recipe:
        return load_recipe(named)
    quantizer = options.get("quantizer") or Options.model_fields["quantizer"].default
    return Recipe({"allocation": "budget"} if "statistics" in find_quantizer(quantizer).needs else {})


def _digest(weight: Weight, fmt: Format) -> bytes:
    """Equal for weights of equal numbers in one format."""
    return hashlib.sha256(fmt.name.encode() + weight.matrix().numpy().tobytes()).digest()


def _config(
    model: Path | None, target: str | Path, calibration: object, options: Options, files: Sequence[Path]
) -> Config:
    """The compile as its `compile.yaml` says it."""
    samples = files_of(calibration)
    described = descriptor_files(target) if find_target(str(target)) is None else []
    read = [*files, *described, *samples, *([options.plan] if options.plan else [])]
    return Config(
        **options.model_dump(),
        model=model,
        target=str(target),
        calibration=samples[0] if len(samples) == 1 else samples or None,
        made_with=made_with(path for path in read if path.is_file()),
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}", "not a device", "choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda", "PyTorch finds no CUDA device", "choose cpu, or install PyTorch for CUDA")
    return torch.device(name)


def _peak_memory() -> int:
    """Bytes; of this process alone where the system tells, for usage counts what its parent held as it was started."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def _subject(graph: ir.Model) -> object:
    return graph.meta.get("path") or graph.graph.name or "the model"


def _runnable(original: Path | onnx.ModelProto) -> Path | bytes:
    return original.SerializeToString() if isinstance(original, onnx.ModelProto) else original


def _bytes(original: Path | onnx.ModelProto, graph: ir.Model) -> int:
    return original.ByteSize() if isinstance(original, onnx.ModelProto) else _size(model_files(original, graph))


def _without_sites(graph: ir.Model) -> str:
    """Why there is nothing to quantize."""
    largest = coverage(graph, [], 0, {}).rows[:3]
    held = "; ".join(f"{row.share:.0%} of its bytes: {row.operator or 'others'}, {row.reason}" for row in largest)
    return f"has no linear layer or embedding to quantize ({held or 'it holds no weights'})"


def _warnings(sites: Sequence[Site], plan: Plan, results: Mapping[Weight, QuantizationResult]) -> list[str]:
    """What a user should know of a compile that went well; sites with the same to say are counted."""
    found: dict[str, list[str]] = {}
    for site in sites:
        result = results.get(site.weight)
        if result is not None and result.reason:
            found.setdefault(f"rounded to nearest: {result.reason}", []).append(site.name)
        if result is not None and result.skipped_tokens:
            text = f"{result.skipped_tokens} tokens of its input hold NaN or infinity and were left out"
            found.setdefault(text, []).append(site.name)
    said = [f"{_some(names)}: {text}" for text, names in found.items()]
    if not any(plan.values()):
        said.append("nothing was quantized: the plan leaves every site in floating point")
    return said


def _some(names: Sequence[str]) -> str:
    return f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"


def _lacking(graph: ir.Model, target: Target, quantized: Collection[Site]) -> str | None:
    """What a user should know of the operators that the target lacks, if its host runs some.

    Raises:
        UnsupportedByTargetError: nothing runs them.
    """
    operators = {site.node: target.emits.operators(site) for site in quantized}
    counts = Counter(node.op_type for node in graph.graph.all_nodes() if node not in operators and node.domain == "")
    counts.update(operator for each in operators.values() for operator in each)
    found = {operator: counts[operator] for operator in target.operators.lacking if counts[operator]}
    if not found:
        return None
    said = ", ".join(f"{operator} ({count})" for operator, count in found.items())
    if target.operators.host is None:
        remedy = "describe a host that runs them (operators.host), or choose another target"
        raise UnsupportedByTargetError(f"target {target.name}", f"lacks operators of the model: {said}", remedy)
    return f"the target's host runs what it lacks: {said}"


def _size(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)
