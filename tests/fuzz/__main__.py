"""Fuzz the command line: `python tests/fuzz --inputs 10000 --seed 0`.

Inputs with findings are kept in folders of their number; moved to `tests/corpus/found`, with a name, they are where
every run begins. `--only NUMBER`, or such a name, runs one input again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # threads do not survive a fork

import onnxruntime
import torch
from cases import KINDS, REPLAYED, replays
from pool import MEMORY, Finding, Outcome, check, run_all

import qxcompiler.cli
import qxcompiler.compiler
import qxcompiler.evaluation
import qxcompiler.report  # noqa: F401

torch.set_num_threads(1)
onnxruntime.set_default_logger_severity(4)


def main() -> int:
    """Run, print a table and the findings; the number of different ones, at most 1, is the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="run this input alone, and show what it says")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit", type=float, default=60, help="seconds for one input")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="where inputs with findings stay")
    arguments = parser.parse_args()

    start = time.monotonic()
    statuses: dict[str, Counter[str]] = defaultdict(Counter)
    findings: dict[Finding, list[Outcome]] = defaultdict(list)
    unlike: list[Outcome] = []  # results that failed verification: sound where damage makes formats too coarse
    slowest, memory = 0.0, 0
    only = arguments.only
    numbers: list[int | str] = [*replays(), *range(arguments.inputs)]
    if only is not None:
        numbers = [int(only) if only.isdigit() else only]
    keep = arguments.keep.absolute()
    for outcome in run_all(numbers, arguments.seed, workers=arguments.workers, limit=arguments.limit, keep=keep):
        statuses[outcome.case.kind][str(outcome.status)] += 1
        slowest, memory = max(slowest, outcome.seconds), max(memory, outcome.memory)
        if outcome.status == 1:
            unlike.append(outcome)
        if only is not None:
            print(f"qxc {' '.join(outcome.case.arguments)}\nstatus {outcome.status}\n{outcome.error}")
        if finding := check(outcome):
            findings[finding].append(outcome)
            if len(findings[finding]) == 1:
                print(f"input {outcome.number}: {finding.signature}", file=sys.stderr, flush=True)

    columns = sorted({status for counts in statuses.values() for status in counts})
    print(f"{'inputs':<26}{'all':>8}" + "".join(f"{column:>9}" for column in columns))
    for kind in (*sorted(KINDS), REPLAYED, "all"):
        counts = statuses[kind] if kind != "all" else sum(statuses.values(), Counter[str]())
        print(f"{kind:<26}{counts.total():>8}" + "".join(f"{counts[column]:>9}" for column in columns))
    total, seconds = counts.total(), time.monotonic() - start
    print(f"{total} inputs in {seconds:.0f} s ({total / seconds:.1f} a second), the slowest {slowest:.1f} s, ", end="")
    print(f"memory at most {memory / 1e9:.2f} of {MEMORY / 1e9:.2f} GB")
    for outcome in unlike:
        print(f"failed verification: input {outcome.number}: {outcome.error.strip()}")
    print(f"findings: {len(findings)}")
    for finding, outcomes in findings.items():
        print(f"\n{len(outcomes)} x {finding.signature}\n  qxc {' '.join(outcomes[0].case.arguments)}")
        print(f"  in {keep}: {', '.join(str(outcome.number) for outcome in outcomes[:8])}")
        print("".join(f"    {line}\n" for line in outcomes[0].error.strip().splitlines()[-6:]), end="")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
