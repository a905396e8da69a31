"""Random models against the operators in C++, under AddressSanitizer and UBSan, in real sessions of onnxruntime.

    python tests/fuzz_operators.py --models 10000 --seed 0

Each model calls one operator, three of four with sizes, types, attributes or layout that do not fit each other. What is
sound must run, and agree with the Python decode; all else must get an error, and nothing may touch what is not its own.
"""

from __future__ import annotations

import argparse
import os
import pickle
import random
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
from operator_fuzz import Call, Run, build, draw, fed_otherwise, flaw
from operator_models import available_isas

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "sanitized"
NUMPYS_LIMIT = "array is too big"  # an empty output of 2**59 rows, which onnxruntime holds
OURS = "qxc node '"
RUNTIMES_ERRORS = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")


def sanitized_library(folder: Path = BUILD) -> Path:
    """`libqxc_ops.so` with AddressSanitizer and UBSan, built where it is not yet."""
    options = ["-DQXC_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=None", "-DQXC_WARNINGS_ARE_ERRORS=ON"]
    for command in (
        ["cmake", "-S", str(ROOT / "runtime_ops"), "-B", str(folder), *options],
        ["cmake", "--build", str(folder), "--target", "qxc_ops", "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
    return folder / "libqxc_ops.so"


class Sanitized:
    """A process that runs models with the sanitized library and the kernels of one instruction set."""

    def __init__(self, library: Path, isa: str, runtime: Path | None = None) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.command = [sys.executable, str(Path(__file__).with_name("sanitized_session.py")), str(library)]
        loaded = (
            _compilers("libasan.so"),
            _compilers("libstdc++.so.6"),
        )  # for the sanitizer, exceptions have to be there
        self.environment = {
            **os.environ,
            "LD_PRELOAD": " ".join(loaded),
            # Python's own leaks do not matter; onnxruntime may ask for too much, and be told so
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=4096",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "QXC_ISA": isa,
            **({"PYTHONPATH": str(runtime)} if runtime else {}),
        }
        self.stderr = Path(self.folder.name, "stderr")
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Sanitized:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()
        self.folder.cleanup()

    def results(self, run: Run) -> list[tuple[str, object]]:
        """("output", array) or ("error", (class, text)) of each feed; one ("report", text) if the process died."""
        if not self.process:
            self.process = subprocess.Popen(
                [*self.command, self.folder.name],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.stderr.open("wb"),
            )
        assert self.process.stdin and self.process.stdout
        try:
            fields = (run.model, run.external, run.feeds, run.threads, run.optimize, run.guarded)
            pickle.dump(fields, self.process.stdin)
            self.process.stdin.flush()
            return pickle.load(self.process.stdout)
        except (EOFError, BrokenPipeError):
            status = self._end()
            text = self.stderr.read_text(errors="replace")
            return [("report", f"exit status {status}\n{text[-6000:]}")]

    def _end(self) -> int:
        if not self.process:
            return 0
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        status = self.process.wait()
        self.process = None
        return status


def _compilers(library: str) -> str:
    command = [os.environ.get("CXX", "c++"), f"-print-file-name={library}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@dataclass
class Tally:
    """What became of the models; a finding is a defect."""

    models: int = 0
    runs: int = 0
    refused: int = 0
    refused_by_runtime: int = 0
    compared: int = 0
    findings: list[str] = field(default_factory=list)
    breaks: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return (
            f"{self.models} models: {self.runs} runs ({self.compared} compared with the Python decode), "
            f"{self.refused} refused by the operators, {self.refused_by_runtime} by onnxruntime, "
            f"{len(self.findings)} findings"
        )

    def judge(self, call: Call, kind: str, result: object) -> str | None:
        """Counts one result; says what is wrong with it."""
        why = flaw(call)
        if kind == "report":
            return str(result)
        if kind == "error":
            name, text = result  # type: ignore[misc]
            if OURS in text:
                self.refused += 1
            elif NUMPYS_LIMIT in text:
                self.runs += 1
                return None
            elif name in RUNTIMES_ERRORS:
                self.refused_by_runtime += 1
            else:
                return f"{name}: {text[:500]}"
            return None if why else f"a sound call is refused: {text[:500]}"
        self.runs += 1
        if why:
            return f"runs, though flawed: {why}"
        if call.expected is None:
            return None
        self.compared += 1
        y = np.asarray(result, np.float64)
        if y.shape != call.expected.shape:
            return f"shape {y.shape} instead of {call.expected.shape}"
        error = float(np.linalg.norm(y - call.expected))
        limit = call.tolerance * float(np.linalg.norm(call.expected))
        return None if error <= limit else f"differs by {error} instead of {limit} at most"


def fuzz(
    tally: Tally, library: Path, models: int, seed: int, isas: tuple[str, ...], runtime: Path | None = None
) -> None:
    """Draws models from `seed`; the kernels of each instruction set run their share."""
    for at, isa in enumerate(isas):
        with Sanitized(library, isa, runtime) as process:
            for number in range(at, models, len(isas)):
                rng = random.Random(f"{seed}/{number}")
                first = draw(rng)
                calls = [first]
                if rng.random() < 0.4 and any(tensor.place == "fed" for tensor in first.inputs):
                    calls += [fed_otherwise(first, rng), first]
                results = process.results(build(calls, rng))
                tally.models += 1
                tally.breaks.update(first.breaks)
                for call, (kind, result) in zip(calls, results, strict=False):
                    if problem := tally.judge(call, kind, result):
                        breaks = ", ".join(call.breaks) or "sound"
                        tally.findings.append(f"model {seed}/{number}, {isa}, {call.operator}, {breaks}: {problem}")
                        print(tally.findings[-1], flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--isa", help="the kernels' instruction set (default: each that this processor has)")
    parser.add_argument("--runtime", type=Path, help="a folder with another onnxruntime")
    parser.add_argument("--library", type=Path, help="a sanitized library that is built already")
    options = parser.parse_args()
    isas = (options.isa,) if options.isa else available_isas()
    tally = Tally()
    try:
        fuzz(tally, options.library or sanitized_library(), options.models, options.seed, isas, options.runtime)
    finally:
        print(tally)
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
