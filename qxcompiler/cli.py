"""The command line: arguments in, tables or JSON out, exit statuses."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import asdict
from enum import StrEnum
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qxcompiler.errors import QxcError, UsageError
from qxcompiler.options import Options
from qxcompiler.progress import track_on_terminal
from qxcompiler.staging import has_finished_work, output_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qxcompiler.cost import Estimate
    from qxcompiler.evaluation import Verification
    from qxcompiler.report import Report, SiteReport, Unquantized

__all__ = ["app", "main"]

_DEFAULTS = Options()
_INTERRUPTED = 130
_LARGEST_SEED = 2**63 - 1

app = typer.Typer(
    pretty_exceptions_enable=False,
    help="Compile ONNX models to 2 to 8 bits a weight for edge accelerators.",
)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # `main` decides the exit status, not rich


_out = _Console(width=None if sys.stdout and sys.stdout.isatty() else 200)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
_Model = Annotated[Path, typer.Argument(help="An ONNX file.", metavar="MODEL.onnx")]
_Tokenizer = Annotated[Path | None, typer.Option(help="tokenizer.json, or its folder. [default: the model's folder]")]


class _Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


_DEFAULT_DEVICE = _Device(_DEFAULTS.device)


class _ErrorTerm(StrEnum):
    divergence = "divergence"
    output = "output"
    frobenius = "frobenius"
    attention = "attention"
    curvature = "curvature"
    measured = "measured"


_DEFAULT_ERROR = _ErrorTerm(_DEFAULTS.error)


class _Activations(StrEnum):
    a32 = "a32"
    a16 = "a16"
    a8 = "a8"
    a8s = "a8s"


class _Kept(StrEnum):
    float32 = "float32"
    float16 = "float16"
    int8 = "int8"
    int4 = "int4"


_Weights = Annotated[str | None, typer.Option(help="Format of linear layers, such as int3g128a or lut3g128.")]
_ActivationsOption = Annotated[_Activations | None, typer.Option(help="Precision of activations.")]
_Head = Annotated[str | None, typer.Option(help="Format of the head, or float. [default: the target's]")]
_Embedding = Annotated[str | None, typer.Option(help="Format of embeddings, or float. [default: the target's]")]
_Error = Annotated[_ErrorTerm, typer.Option(help="What a budget keeps small: see docs/allocation.md.")]
_Recipe = Annotated[
    str | None,
    typer.Option(help="fast, balanced or best, or a YAML file of options; the others given here go before it."),
]
_QuantizerOption = Annotated[str, typer.Option(help="rtn, gptq, gptaq, guided, hqq, or one that a package adds.")]
_Calibration = Annotated[
    list[Path] | None,
    typer.Option(
        help="Samples: .txt, .jsonl with `text`, or .npz; `self`: what the model writes. Several are mixed evenly."
    ),
]
_Samples = Annotated[int, typer.Option(min=1, help="How many samples to calibrate on.")]
_Length = Annotated[
    int | None, typer.Option(min=2, help="Tokens a sample. [default: 512, or the model's context if shorter]")
]
_Keep = Annotated[
    str | None, typer.Option(help="Leave in float the sites whose name or role this finds.", metavar="REGEX")
]
_DeviceOption = Annotated[_Device, typer.Option(help="Where the algebra on weights runs.")]
_Seed = Annotated[int, typer.Option(min=0, max=_LARGEST_SEED, help="Seed of random generators.")]


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    import onnxruntime

    from qxcompiler import __version__
    from qxcompiler.doctor import instruction_sets

    try:
        kernels = f"kernels: {instruction_sets()[0]}"
    except QxcError as error:
        kernels = str(error)
    _out.print(f"qxc {__version__} (onnxruntime {onnxruntime.__version__}, {kernels})", highlight=False)
    raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print versions and kernels.")
    ] = False,
) -> None:
    pass


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="A Hugging Face id, a folder with safetensors, or a GGUF file.")],
    output: Annotated[Path, typer.Argument(parser=output_folder, help="The folder to write.", metavar="OUT")],
    task: Annotated[
        str | None, typer.Option(help="Such as text-classification. [default: that of the architecture]")
    ] = None,
) -> None:
    """Export a Hugging Face model to ONNX, with its tokenizer and configuration."""
    from qxcompiler.models import export as run

    folder = run(source, output, task, track=track_on_terminal)
    files = sorted(file for file in folder.glob("*.onnx"))
    _out.print(f"{', '.join(str(file) for file in files)} written", soft_wrap=True, highlight=False)


@app.command()
def compile(  # noqa: A001
    context: typer.Context,
    model: Annotated[
        Path | None, typer.Argument(help="An ONNX file, or a folder with several.", metavar="MODEL")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Name of a target (see `qxc targets`), or its YAML file.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            parser=output_folder,
            metavar="FOLDER",
            help="Folder to write. [default: MODEL-TARGET beside the model]",
        ),
    ] = None,
    weights: _Weights = None,
    activations: _ActivationsOption = None,
    head: _Head = None,
    embedding: _Embedding = None,
    allocation: Annotated[
        str | None,
        typer.Option(help="How schemes are chosen: uniform (default with --weights), budget, or what a package adds."),
    ] = _DEFAULTS.allocation,
    bits_per_weight: Annotated[
        float | None,
        typer.Option(
            "--bpw", min=0, help="Bits a weight of the linear layers, at most, spent where the model needs them."
        ),
    ] = _DEFAULTS.bits_per_weight,
    max_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Size of the compiled model's files, at most, such as 60MB; spent as --bpw is."
        ),
    ] = None,
    min_tokens_per_second: Annotated[
        float | None,
        typer.Option(min=0, help="Rate that the target's cost model predicts, at least; spent as --bpw is."),
    ] = _DEFAULTS.min_tokens_per_second,
    max_joules_per_token: Annotated[
        float | None,
        typer.Option(min=0, help="Energy that the target's cost model predicts, at most; spent as --bpw is."),
    ] = _DEFAULTS.max_joules_per_token,
    max_perplexity_increase: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="The smallest model whose perplexity on samples held back is at most so much above the original's, "
            "such as 5%; compiles and measures several.",
        ),
    ] = None,
    error: _Error = _DEFAULT_ERROR,
    recipe: _Recipe = None,
    quantizer: _QuantizerOption = _DEFAULTS.quantizer,
    calibration: _Calibration = None,
    samples: _Samples = _DEFAULTS.samples,
    tune: Annotated[
        int, typer.Option(min=0, help="How many samples to tune scales and tables on, through the whole model.")
    ] = _DEFAULTS.tune,
    length: _Length = None,
    keep: _Keep = None,
    plan: Annotated[
        Path | None, typer.Option(help="A plan.yaml with the scheme of every site; beside a budget, of some.")
    ] = None,
    device: _DeviceOption = _DEFAULT_DEVICE,
    seed: _Seed = _DEFAULTS.seed,
    kv: Annotated[
        _Kept | None, typer.Option(help="How attention keeps keys and values. [default: as the model does]")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Leave attention and norms in the model's own operators.")] = (
        _DEFAULTS.plain
    ),
    verification: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Run the result beside the original before it is handed over.")
    ] = _DEFAULTS.verification,
    config: Annotated[
        Path | None,
        typer.Option(help="A compile.yaml, as every compile writes it: gives what the command line does not."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what every step and pass did.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what a killed compile had finished.")] = False,
    json: _Json = False,
) -> None:
    """Compile a model for a target, or every model of a folder."""
    from qxcompiler.compiler import compile as run
    from qxcompiler.compiler import compile_folder
    from qxcompiler.config import Config
    from qxcompiler.recipes import load_recipe

    if verbose:
        logging.getLogger("qxcompiler").setLevel(logging.INFO)
        logging.getLogger("qxcompiler").addHandler(_Log())
    said = _said_by(config) if config else {}
    if recipe:  # its options go before the file's
        replaced = load_recipe(recipe).options
        said = {name: value for name, value in said.items() if name not in replaced}
    given = {name: value for name, value in context.params.items() if _is_given(context, name)}
    named = ("weights", "plan")  # what names formats goes before the file's allocation, as before a recipe's
    if any(name in given for name in named) and all(said.get(name) is None for name in named):
        said.pop("allocation", None)
    settings: dict[str, Any] = said | {name: value for name, value in given.items() if name in Config.model_fields}
    model, target = settings.pop("model", None), settings.pop("target", None)
    if model is None or target is None:
        missing = "MODEL" if model is None else "--target"
        raise UsageError(missing, "is missing", "give it, or a --config file that says it")
    folder = output or model.with_name(f"{model.stem}-{Path(target).stem}")
    settings |= {"restart": restart, "track": track_on_terminal}
    start = time.perf_counter()
    several = model.is_dir()
    try:
        if several:
            reports = compile_folder(model, target, folder, **settings)
        else:
            reports = {"model.onnx": run(model, target, folder, **settings)}
    except KeyboardInterrupt:
        if has_finished_work(folder):
            _complain("qxc: what is finished is kept: the same command goes on from there")
        raise
    if several:
        if json:
            _out.out(dumps({name: report.model_dump(mode="json") for name, report in reports.items()}, indent=2))
            return
    elif json:
        _print_json(reports["model.onnx"])
        return
    for name, report in reports.items():
        _print_report(folder / name, report)
    _print_rows({"time": f"{time.perf_counter() - start:.0f} s"})
    for name, report in reports.items():
        for warning in report.warnings:
            _complain(f"qxc: warning: {f'{name}: ' if len(reports) > 1 else ''}{warning}")


class _Log(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _complain(f"qxc: {record.getMessage()}")


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line, rather than its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _said_by(config: Path) -> dict[str, Any]:
    """What a configuration file says; files that have changed since a compile wrote it are warned of."""
    from qxcompiler.config import file_digest, load_config

    loaded = load_config(config)
    for name, digest in (loaded.made_with.sha256 if loaded.made_with else {}).items():
        if Path(name).is_file() and file_digest(Path(name)) != digest:
            _complain(f"qxc: warning: {name} is not what it was when {config} was written")
    return {name: getattr(loaded, name) for name in loaded.model_fields_set - {"made_with"}}


@app.command("eval")
def evaluate(
    model: _Model,
    text: Annotated[Path, typer.Option(help="Held-out samples: .txt, .jsonl with `text`, or .npz.")],
    tokenizer: _Tokenizer = None,
    windows: Annotated[int, typer.Option(min=1, help="How many windows of text, evenly spaced.")] = 40,
    length: Annotated[
        int | None, typer.Option(min=2, help="Tokens a window. [default: 512, or the model's context if shorter]")
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens read at once, after those whose keys and values are kept. [default: all]"),
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="The model to compare with.", metavar="REF.onnx")] = None,
    json: _Json = False,
) -> None:
    """Measure perplexity, divergence from a reference, or, for encoders, similarity to it."""
    from qxcompiler.evaluation import evaluate as run

    figures = run(
        model,
        text,
        tokenizer=tokenizer,
        windows=windows,
        length=length,
        chunk=chunk,
        reference=reference,
        track=track_on_terminal,
    )
    if json:
        _print_json(figures)
        return
    fields = figures.model_dump(exclude={"kind", "outputs"}, exclude_none=True)
    notes = {name: output.note for name, output in getattr(figures, "outputs", {}).items() if output.note}
    _print_rows(
        {
            name.replace("_", " "): f"{value:.4f}" if isinstance(value, float) else str(value)
            for name, value in fields.items()
        }
        | {f"output {name}": note for name, note in notes.items()}
    )


@app.command()
def generate(
    model: _Model,
    prompt: Annotated[list[str], typer.Option(help="The text to continue; given several times, side by side.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="How many tokens to write at most.")] = 64,
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens that memory is taken for, prompt and text. [default: what they can need]"),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens of this total probability.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=_LARGEST_SEED, help="Seed of the draws.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be given several times.", metavar="TEXT")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Answer the prompt, by the model's chat template.")] = False,
    lookup: Annotated[
        int, typer.Option(min=0, help="Check at most so many tokens at once that followed the same words before.")
    ] = 0,
    tokenizer: _Tokenizer = None,
) -> None:
    """Let a language model continue a text, or several."""
    from qxcompiler_runtime import generate as run
    from qxcompiler_runtime import generate_batch

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "context": context,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": stop or (),
        "chat": chat,
        "tokenizer": tokenizer,
    }
    if len(prompt) > 1:
        if lookup:
            raise UsageError("--lookup", "takes a single --prompt", "give one, or leave --lookup")
        results = generate_batch(model, prompt, **settings)
        for given, written in zip(prompt, results, strict=True):
            write(f"> {given}\n{written.text}\n")
    else:
        results = [run(model, prompt[0], lookup=lookup, on_text=write, **settings)]
        write("\n")
    tokens = sum(len(result.tokens) for result in results)
    seconds = max(result.decode_seconds for result in results)
    _complain(
        f"{tokens} tokens"
        + (f", {(tokens - len(results)) / seconds:.1f} tokens per second" if tokens > len(results) else "")
        + (f", {results[0].steps} steps" if lookup else "")
        + ("" if results[0].uses_past else " (no past key values: the whole text is computed for each token)")
    )


@app.command()
def bench(
    model: _Model,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of the prompt.")] = 512,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens after it.")] = 64,
    repetitions: Annotated[int, typer.Option(min=1, help="Runs that each figure is the median of.")] = 3,
    threads: Annotated[
        list[int], typer.Option(min=1, help="Threads; may be given several times. [default: 1 and all]")
    ] = [],  # noqa: B006
    json: _Json = False,
) -> None:
    """Measure how fast a language model reads and writes on this machine."""
    from qxcompiler_runtime import bench as run

    rates = run(model, prompt_tokens=prompt_tokens, new_tokens=new_tokens, repetitions=repetitions, threads=threads)
    if json:
        _out.out(dumps(asdict(rates), indent=2), highlight=False)
        return
    columns = ("threads", f"prefill of {prompt_tokens}", "first token", f"decode of {new_tokens}")
    table = Table(*columns, caption=f"peak memory {_megabytes(rates.peak_memory_bytes)}", caption_justify="left")
    for rate in rates.rates:
        table.add_row(
            str(rate.threads),
            f"{rate.prefill_tokens_per_second:.1f} tokens/s",
            f"{1e3 * rate.first_token_seconds:.1f} ms",
            f"{rate.decode_tokens_per_second:.1f} tokens/s",
        )
    _out.print(table)


@app.command()
def inspect(
    model: _Model,
    target: Annotated[str | None, typer.Option(help="Predict what the model costs on a target: name or file.")] = None,
    context: Annotated[
        int, typer.Option(min=1, max=1 << 24, help="Tokens before the one that is decoded, or in an input.")
    ] = 512,
    size: Annotated[
        list[str] | None, typer.Option(help="A free size of the inputs, for --target.", metavar="NAME=N")
    ] = None,
    json: _Json = False,
) -> None:
    """List a model's sites, their roles, formats and sizes, and predict what it costs on a target."""
    from qxcompiler.report import inspect as run
    from qxcompiler.targets import load_target

    hardware = None if target is None else load_target(target)
    found = run(model, hardware, context=context, sizes=dict(map(_size, size or [])))
    if json:
        _print_json(found)
        return
    table = Table("block", "role", "operator", "in", "out", "format", "bits", "bytes", "name")
    for site in found.sites:
        table.add_row(
            "" if site.block is None else str(site.block),
            site.role,
            site.operator,
            str(site.in_features),
            str(site.out_features),
            site.format,
            f"{site.bits_per_weight:.3f}",
            f"{site.bytes:,}" if site.bytes else "shared",
            escape(_plain(site.name)),
        )
    _out.print(table)
    rows = {"opset": str(found.opset), "nodes": str(found.nodes), "size": _megabytes(found.bytes)}
    if found.bits_per_weight is not None:
        rows["weights of sites"] = f"{_megabytes(found.site_bytes)}, {found.bits_per_weight:.3f} bits per weight"
    if found.model_bits_per_weight is not None:
        rows["all weights"] = f"{found.model_bits_per_weight:.3f} bits per weight"
    _print_rows(rows)
    _print_unquantized("not sites", found.others)
    _print_predicted(found.predicted)


@app.command()
def pareto(
    context: typer.Context,
    model: _Model,
    target: Annotated[str, typer.Option(help="Name of a target (see `qxc targets`), or its YAML file.")],
    budgets: Annotated[
        str, typer.Option(help="Bits a weight of the linear layers, FIRST:LAST:STEP, such as 2.5:5:0.25.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            parser=output_folder,
            metavar="FOLDER",
            help="Folder to write. [default: MODEL-TARGET-pareto beside the model]",
        ),
    ] = None,
    bits_per_weight: Annotated[float | None, typer.Option("--bpw", min=0, help="The budget to mark.")] = None,
    weights: _Weights = None,
    activations: _ActivationsOption = None,
    head: _Head = None,
    embedding: _Embedding = None,
    error: _Error = _DEFAULT_ERROR,
    recipe: _Recipe = None,
    quantizer: _QuantizerOption = _DEFAULTS.quantizer,
    calibration: _Calibration = None,
    samples: _Samples = _DEFAULTS.samples,
    length: _Length = None,
    keep: _Keep = None,
    device: _DeviceOption = _DEFAULT_DEVICE,
    seed: _Seed = _DEFAULTS.seed,
    json: _Json = False,
) -> None:
    """Find the best plan for each of several budgets: a table, and a picture. Nothing is compiled."""
    from qxcompiler.compiler import pareto as run

    given = {name: value for name, value in context.params.items() if _is_given(context, name)}
    settings = {name: value for name, value in given.items() if name in Options.model_fields}
    folder = output or model.with_name(f"{model.stem}-{Path(target).stem}-pareto")
    front = run(
        model,
        target,
        folder,
        budgets=budgets,
        calibration=calibration,
        recipe=recipe,
        track=track_on_terminal,
        **settings,
    )
    if json:
        _print_json(front)
    else:
        table = Table("plan", "budget", "bits per weight", "bytes", "expected error", title=front.unit)
        for point in front.points:
            budget = "" if point.budget is None else f"{point.budget:g}"
            mark = " <" if point.budget is not None and point.budget == front.marked else ""
            row = (f"{point.bits_per_weight:.3f}", f"{point.bytes:,}", f"{point.expected_error:.4g}")
            table.add_row(point.plan, budget + mark, *row)
        _out.print(table)
        _print_rows({"written": str(folder)})
    for warning in front.warnings:
        _complain(f"qxc: warning: {warning}")


@app.command()
def explain(
    output: Annotated[Path, typer.Argument(help="The folder of a compile, or a report in it.", metavar="OUT")],
    site: Annotated[str, typer.Argument(help="A site's name, or a part that no other has.", metavar="SITE")],
    json: _Json = False,
) -> None:
    """Say why a site got its scheme: what was compared, and what the budget's price was."""
    from qxcompiler.report import explain as run

    found = run(output, site)
    if json:
        _print_json(found)
        return
    row = found.site
    weight = f"{row.out_features} x {row.in_features}"
    size = f"{row.bytes:,}, {found.share:.2%} of all sites" if row.bytes else "shared with an earlier site"
    rows = {"site": row.name, "role": row.role, "weight": weight, "scheme": row.scheme, "bytes": size}
    if found.agrees_with:
        rows["agrees with"] = ", ".join(found.agrees_with)
    for limit in found.limits:
        unit, name = (1e-3, "a millisecond") if limit.resource == "seconds" else (1e6, "a megabyte")
        price = f"{unit * limit.price:.3g} for {name}" if limit.price else "nothing: it is not what binds"
        rows[limit.option] = f"{limit.used / limit.limit:.3%} used; price: {price}"
    _print_rows(rows)
    if found.choices:
        table = Table("", "format", "bytes", "error", "with its price", title=f"error: {found.unit}")
        for choice in found.choices:
            table.add_row(
                ">" if choice.chosen else "",
                choice.format,
                f"{choice.bytes:,}",
                f"{choice.error:.4g}",
                f"{choice.priced:.4g}",
            )
        _out.print(table)
    for reason in found.reasons:
        _out.print(escape(_plain(reason)), highlight=False)


@app.command()
def targets(
    name: Annotated[str | None, typer.Argument(help="Name or file of one target.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a descriptor instead.")] = False,
) -> None:
    """List the targets, or show one with all that it inherits."""
    import yaml

    from qxcompiler.targets import load_target, target_json_schema, target_names

    if schema:
        _out.out(dumps(target_json_schema(), indent=2))
    elif name is None:
        _print_rows({known: load_target(known).description for known in target_names()})
    else:
        fields = load_target(name).model_dump(exclude_none=True, exclude={"inherit"})
        _out.out(yaml.safe_dump(fields, sort_keys=False), end="")


@app.command()
def profile(
    output: Annotated[Path, typer.Option("-o", "--output", help="The descriptor to write.", metavar="HOST.yaml")],
    threads: Annotated[
        list[int] | None, typer.Option(min=1, max=1024, help="Numbers of threads; predictions are for the last.")
    ] = None,
) -> None:
    """Measure this machine, and write a target descriptor of it."""
    from qxcompiler.profiling import profile as run

    run(output, list(dict.fromkeys(threads or (1, os.cpu_count() or 1))), track_on_terminal)


@app.command()
def doctor(json: _Json = False) -> None:
    """Say what is installed and which kernels run, and test each of them."""
    from qxcompiler.doctor import diagnose

    found = diagnose()
    if json:
        _print_json(found)
    else:
        _print_rows({name: version or "not installed" for name, version in found.versions.items()})
        _print_rows({"operators": found.library})
        table = Table("kernels", "products", "largest error", "")
        for index, check in enumerate(found.kernels):
            error = "" if check.largest_error is None else f"{check.largest_error:.1e}"
            said = check.problem or ("right, and used" if index == 0 else "right")
            table.add_row(check.instruction_set, str(check.products), error, escape(_plain(said)))
        _out.print(table)
    if not found.sound:
        raise QxcError("the operators", "compute wrong results here", "report this as a bug, with all of this")


def _print_report(path: Path, report: Report) -> None:
    quantized = [site for site in report.sites if site.quantizer]
    bits = {
        f"over {len(quantized)} quantized sites": report.quantized_bits_per_weight,
        f"over all {len(report.sites)} sites": report.bits_per_weight,
        "over the whole model": report.model_bits_per_weight,
    }
    rows = {
        "written": str(path),
        "size": f"{_megabytes(report.bytes_before)} -> {_megabytes(report.bytes_after)}",
        "bits per weight": ", ".join(f"{figure:.3f} {where}" for where, figure in bits.items() if figure is not None),
    }
    if account := report.allocation:
        used = ", ".join(f"{limit.option} ({limit.used / limit.limit:.2%} used)" for limit in account.limits)
        rows["budget"] = f"{used}, expected error {account.expected_error:.4g} ({account.term})"
    if limit := report.perplexity_limit:
        increase = limit.measured[limit.kept].increase
        rows["perplexity"] = (
            f"{increase:+.2%} on {limit.samples} samples held back, where {limit.allowed:.2%} is allowed"
        )
    if report.kv:
        size = report.kv_bytes_per_token
        rows["keys and values"] = report.kv if size is None else f"{report.kv}, {size} bytes a token"
    rows["memory at most"] = _megabytes(report.peak_memory_bytes)
    if report.verification:
        rows["verified"] = _verified(report.verification)
    if report.not_predicted:
        rows["not predicted"] = report.not_predicted
    _print_rows(rows)
    _print_roles(report.sites)
    _print_unquantized("not quantized", report.unquantized)
    _print_predicted(report.predicted)


def _verified(verification: Verification) -> str:
    """The output that is furthest from the original's."""
    where = f"{verification.samples} {'made-up inputs' if verification.made_up else 'samples held back'}"
    judged = {name: output for name, output in verification.outputs.items() if output.judged}
    errors = {name: output.relative_error for name, output in judged.items() if output.relative_error is not None}
    if errors:
        worst = max(errors, key=lambda name: errors[name])
        return f"{worst} differs from the original's by {errors[worst]:.2%} on {where}"
    agreements = {name: output.agreement for name, output in judged.items() if output.agreement is not None}
    if agreements:
        worst = min(agreements, key=lambda name: agreements[name])
        return f"{agreements[worst]:.2%} of {worst} equal the original's on {where}"
    notes = "; ".join(f"{name}: {output.note}" for name, output in verification.outputs.items())
    return f"runs on {where}, but its outputs cannot be judged ({notes})"


def _print_roles(sites: Sequence[SiteReport]) -> None:
    """What was chosen, by role."""
    table = Table("role", "scheme", "sites", "bits", "bytes", "largest error", title="sites", title_justify="left")
    by_role: dict[tuple[str, str], list[SiteReport]] = {}
    for site in sites:
        by_role.setdefault((site.role, site.scheme), []).append(site)
    for (role, scheme), group in by_role.items():
        stored = [site for site in group if site.bytes]
        weights = sum(site.in_features * site.out_features for site in stored)
        size = sum(site.bytes for site in stored)
        errors = [site.error for site in group if site.error is not None]
        table.add_row(
            role,
            scheme,
            str(len(group)),
            f"{8 * size / weights:.3f}" if weights else "",
            f"{size:,}" if size else "shared",
            f"{max(errors):.4f}" if errors else "",
        )
    _out.print(table)


def _print_unquantized(title: str, rows: Sequence[Unquantized]) -> None:
    if not rows:
        return
    table = Table("operator", "why", "tensors", "bytes", "share", title=title, title_justify="left")
    for row in rows:
        table.add_row(row.operator, escape(_plain(row.reason)), str(row.tensors), f"{row.bytes:,}", f"{row.share:.1%}")
    _out.print(table)


def _print_rows(rows: dict[str, str]) -> None:
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, escape(_plain(value)))
    _out.print(table)


def _print_json(result: BaseModel) -> None:
    _out.out(result.model_dump_json(indent=2), highlight=False)


def _size(given: str) -> tuple[str, int]:
    name, _, number = given.partition("=")
    if not name or not number.isdecimal() or len(number) > 9 or int(number) < 1:
        raise UsageError(f"--size {given}", "not a size", "write NAME=N, such as height=224")
    return name, int(number)


def _print_predicted(estimates: Sequence[Estimate]) -> None:
    """What each phase costs, and what binds for how much of it."""
    if not estimates:
        return
    title = f"predicted on {estimates[0].target}"
    table = Table("phase", "ms", "tokens/s", "joules", "memory", "bound by", title=title, title_justify="left")
    for each in estimates:
        bound = ", ".join(f"{name} {time / each.seconds:.0%}" for name, time in list(each.bound_by.items())[:3])
        joules = "" if each.joules is None else f"{each.joules:.3g}"
        row = (f"{1e3 * each.seconds:.2f}", f"{each.tokens_per_second:.1f}", joules, _megabytes(each.peak_bytes), bound)
        table.add_row(each.phase, *row)
    _out.print(table)
    for each in estimates:
        if each.unknown:
            _complain(f"qxc: warning: {each.phase}: {len(each.unknown)} nodes of unknown shapes are not counted")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _plain(text: str) -> str:
    """Text from a file, without what a terminal would obey."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _complain(line: str) -> None:
    line = _plain(line)
    with suppress(OSError):  # a terminal that is gone
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _interrupt(*_: object) -> NoReturn:
    for number in (signal.SIGTERM, signal.SIGHUP):  # the second does not disturb the tidying up after the first
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; every failure that a user can cause is one line and an exit status.

    Args:
        arguments: those of the process by default.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):  # tidy up as for Ctrl-C
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    _silence_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal need not be UTF-8
    try:
        arguments = sys.argv[1:] if arguments is None else arguments
        for argument in arguments:
            if not argument.isascii() and any("\ud800" <= character <= "\udfff" for character in argument):
                # what Python makes of other bytes, and neither onnxruntime nor tokenizers take
                raise UsageError(argument, "is not UTF-8", "rename it, or write it in UTF-8")
        status = app(arguments or ["--help"], standalone_mode=False) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
    except QxcError as error:
        _complain(f"qxc: error: {error}")
        status = error.exit_status
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    except BrokenPipeError:  # whoever reads has read enough
        _drop_output()
        status = 0
    except Exception as error:
        line = _last_resort(error)
        if line is None:  # a bug of ours: show where
            raise
        _complain(f"qxc: error: {line}")
        status = QxcError.exit_status
    if status == _INTERRUPTED:  # typer returns it for Ctrl-C
        _complain("qxc: error: interrupted: nothing was written")
    sys.exit(status)


def _last_resort(error: Exception) -> str | None:
    """The line for a failure of the command line or of the machine, None for any other."""
    if hasattr(error, "format_message"):  # wrong arguments
        return f"{' '.join(error.format_message().split())}: see `qxc --help`"
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
        return "the model: there is not enough memory for it: free some, or use a machine with more"
    if isinstance(error, RecursionError):
        return "the model: nested too deep: export it again with fewer levels"
    if isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EIO, errno.EBADF):
        _drop_output()
        return f"standard output: cannot be written ({error.strerror}): free the place it goes to"
    return None


def _drop_output() -> None:
    """Let nothing be written at the end of the process, which would fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _silence_libraries() -> None:
    """What libraries warn of is for developers; errors come as exceptions."""
    logging.getLogger().addHandler(logging.NullHandler())
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


if __name__ == "__main__":
    main()
