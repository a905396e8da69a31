"""The cost model beside SCALE-Sim, a simulator of systolic arrays by others, on the same array, dataflow and memory.

SCALE-Sim counts cycle by cycle. It wants an older numpy, so it lives in an environment of its own:

    python -m venv scalesim && scalesim/bin/pip install scalesim==3.0.0 "numpy<2" "pandas<3"
    python benchmarks/cost_systolic.py --python scalesim/bin/python

*free*: memory never waits; what counts is the array. *bound*: weights and inputs come at 8 bytes a cycle, all of them
before the first is multiplied, as SCALE-Sim does where its buffers hold them (here `overlaps_compute: false`). Weights
larger than the buffers are left out: SCALE-Sim 3.0.0 then fetches in another order than it asks in, and takes 3 to 38
times the cycles that the bytes need, even for one row.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from qxcompiler.cost.product import cost_of_product
from qxcompiler.formats import Scheme
from qxcompiler.targets import Target, load_target

SIDE = 32  # of the array, as `npu-int8` has it
CLOCK_HZ = 1e9
BYTES_PER_CYCLE = 8
BUFFERS_KIB = (256, 1024, 256)  # of inputs, weights, outputs
OUTPUT_BYTES_PER_CYCLE = 1024
DATAFLOWS = {"output-stationary": "os", "weight-stationary": "ws", "input-stationary": "is"}
FREE = [
    (1, 256, 256), (1, 512, 512), (8, 512, 256), (16, 384, 512), (32, 128, 1024), (64, 256, 256), (64, 320, 640),
    (100, 200, 300), (128, 64, 512), (128, 256, 512), (33, 65, 129),
]  # fmt: skip
BOUND = [(1, 512, 512), (2, 512, 256), (4, 256, 512), (1, 320, 640)]
SCHEME = Scheme.parse("int8/a8")

SCRIPT = """
import sys
from scalesim.scale_sim import scalesim
config, topology, layout, output = sys.argv[1:]
options = {"save_disk_space": True, "verbose": False, "input_type_gemm": True}
run = scalesim(config=config, topology=topology, layout=layout, **options)
run.run_scale(top_path=output)
"""
CONFIGURATION = """
[general]
run_name = run
[run_presets]
InterfaceBandwidth = {mode}
UseRamulatorTrace = False
[architecture_presets]
ArrayHeight = {side}
ArrayWidth = {side}
ifmapsramszkB = {sizes[0]}
filtersramszkB = {sizes[1]}
ofmapsramszkB = {sizes[2]}
IfmapOffset = 0
FilterOffset = 10000000
OfmapOffset = 20000000
Dataflow = {dataflow}
Bandwidth = {output_bandwidth}
ReadRequestBuffer = 64
WriteRequestBuffer = 64
[layout]
IfmapCustomLayout = False
FilterCustomLayout = False
IfmapSRAMBankBandwidth = {bandwidth}
IfmapSRAMBankNum = 1
IfmapSRAMBankPort = 2
FilterSRAMBankBandwidth = {bandwidth}
FilterSRAMBankNum = 1
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = false
"""


def simulated(python: Path, dataflow: str, shapes: list[tuple[int, int, int]], *, bound: bool) -> list[float]:
    """SCALE-Sim's cycles of products [M, K] x [K, N]."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "run.py").write_text(SCRIPT)
        configuration = CONFIGURATION.format(
            mode="USER" if bound else "CALC",
            side=SIDE,
            sizes=BUFFERS_KIB,
            dataflow=DATAFLOWS[dataflow],
            bandwidth=BYTES_PER_CYCLE,
            output_bandwidth=OUTPUT_BYTES_PER_CYCLE,
        )
        (folder / "scale.cfg").write_text(configuration)
        rows = [f"product{index},{M},{N},{K}," for index, (M, N, K) in enumerate(shapes)]
        (folder / "products.csv").write_text("\n".join(["Layer,M,N,K,", *rows, ""]))
        (folder / "layout.csv").write_text("Layer,\n")
        command = [str(python), "run.py", "scale.cfg", "products.csv", "layout.csv", "out"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        with (folder / "out" / "run" / "COMPUTE_REPORT.csv").open() as file:
            reports = list(csv.DictReader(file, skipinitialspace=True))
    column = "Total Cycles (incl. prefetch)" if bound else "Total Cycles"
    return [float(report[column]) for report in reports]


def target(dataflow: str, *, bound: bool) -> Target:
    """The generic systolic NPU with SCALE-Sim's memory: words of a byte, no latency, no vector unit to wait for."""
    fields = load_target("npu-int8").model_dump(exclude_none=True)
    fields["compute_units"]["array"]["array"] = {"rows": SIDE, "columns": SIDE, "dataflow": dataflow}
    fields["vector_unit"] |= {"operand": "int8", "values_per_cycle": 1e9}
    for level in fields["memory"].values():
        level |= {"bandwidth_bytes_per_second": 1e16, "read_latency_cycles": 0, "write_latency_cycles": 0}
        level |= {"width_bits": 8, "burst_length_bytes": 1}
    fields["memory"]["sram"]["size_bytes"] = 2 * sum(BUFFERS_KIB) << 10  # both of each pair of buffers
    fields["dma"] |= {"alignment_bytes": 1, "overlaps_compute": not bound}
    if bound:
        fields["memory"]["dram"]["bandwidth_bytes_per_second"] = BYTES_PER_CYCLE * CLOCK_HZ
    return Target.model_validate(fields)


def main() -> None:
    """Print a row a product, and how far apart the two are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="the interpreter that has scalesim")
    arguments = parser.parse_args()
    python = arguments.python.absolute()
    table = Table("memory", "dataflow", "M", "N", "K", "SCALE-Sim", "cost model", "difference")
    apart: dict[str, list[float]] = {}
    for memory, shapes in (("free", FREE), ("bound", BOUND)):
        for dataflow in DATAFLOWS:
            hardware = target(dataflow, bound=memory == "bound")
            cycles = simulated(python, dataflow, shapes, bound=memory == "bound")
            for (M, N, K), theirs in zip(shapes, cycles, strict=True):
                ours = cost_of_product(hardware, M, N, K, SCHEME).seconds * CLOCK_HZ
                apart.setdefault(f"{memory}, {dataflow}", []).append(ours / theirs - 1)
                difference = f"{ours / theirs - 1:+.1%}"
                table.add_row(memory, dataflow, str(M), str(N), str(K), f"{theirs:.0f}", f"{ours:.0f}", difference)
    console = Console(width=120)
    console.print(table)
    for name, differences in apart.items():
        mean = statistics.mean(map(abs, differences))
        console.print(f"{name}: mean {mean:.1%}, at most {max(map(abs, differences)):.1%}")


if __name__ == "__main__":
    main()
