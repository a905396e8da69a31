"""Instructions that the Arm kernels execute, as their speed cannot be measured on another machine.

Every product runs under qemu, which logs each instruction, with one call and with two; the difference is one call:
everything for K = 1024 inputs and N = 64 outputs but the rounding of A. A block is 32 inputs of 16 outputs.

    python benchmarks/arm_instructions.py [--isas neon neon_dotprod neon_i8mm] [--formats int3g128 ...] [--rows 1]
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

from native import CODES, SCALES
from rich.console import Console
from rich.table import Table

from qxcompiler.formats import parse_format

ROOT = Path(__file__).parent.parent
INPUTS, OUTPUTS = 1024, 64
FORMATS = (
    *(f"int{bits}g128" for bits in (2, 3, 4, 5, 6, 8)),
    *(f"int{bits}g128a" for bits in (3, 4)),
    *(f"lut{bits}g128{table}" for table in ("t", "") for bits in (2, 3, 4)),
    "mxfp4",
)
ACTIVATIONS = ("a8", "a16", "a32")  # qxc_activation


def build(folder: Path) -> Path:
    """The program that multiplies, linked statically."""
    source, program = ROOT / "runtime_ops", folder / "arm_instructions"
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={source / 'cmake' / 'aarch64-linux-gnu.cmake'}"
    compiler = ["aarch64-linux-gnu-g++", "-O2", "-static", f"-I{source / 'include'}", "-o", str(program)]
    inputs = [str(ROOT / "benchmarks" / "arm_instructions.cpp"), str(folder / "libqxc_kernels.a")]
    for command in (
        ["cmake", "-S", str(source), "-B", str(folder), toolchain],
        ["cmake", "--build", str(folder), "--target", "qxc_kernels_static"],
        [*compiler, *inputs],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return program


def executed(program: Path, isa: str, fmt: str, activation: str, rows: int, repeats: int) -> int:
    """Instructions of a whole run."""
    weight = parse_format(fmt)
    of_weight = CODES[weight.code_type], weight.bits, int(weight.codebook_rows(OUTPUTS) == 1)
    of_product = ACTIVATIONS.index(activation), rows, OUTPUTS, INPUTS
    numbers = (*of_weight, *of_product, weight.group_length(INPUTS), SCALES[weight.scale_type], repeats)
    with tempfile.NamedTemporaryFile() as log:
        emulator = ["qemu-aarch64", "-cpu", "max", "-singlestep", "-d", "exec,nochain", "-D", log.name]
        subprocess.run([*emulator, str(program), isa, *map(str, numbers)], check=True)
        return sum(line.startswith(b"Trace") for line in log)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isas", nargs="+", default=["neon", "neon_dotprod"])
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    parser.add_argument("--activations", nargs="+", default=["a8", "a16"])
    parser.add_argument("--rows", type=int, default=1, help="M")
    arguments = parser.parse_args()
    weights = INPUTS * OUTPUTS
    table = Table(title=f"M = {arguments.rows}: instructions a block of 512 weights (a weight)")
    table.add_column("format")
    columns = [(isa, activation) for isa in arguments.isas for activation in arguments.activations]
    for isa, activation in columns:
        table.add_column(f"{isa} {activation}", justify="right")
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        for fmt in arguments.formats:
            cells = []
            for isa, activation in columns:
                once, twice = (executed(program, isa, fmt, activation, arguments.rows, n) for n in (1, 2))
                each = (twice - once) / weights
                cells.append(f"{512 * each:.0f} ({each:.3f})")
            table.add_row(fmt, *cells)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
