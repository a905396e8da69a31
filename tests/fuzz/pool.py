"""Run the command line on many inputs in forked children, with limits on time and memory.

A child is forked from a parent that has imported everything and has started no thread, works through a batch of
inputs, and says on a pipe what each gave; one that dies takes a single input with it. Whatever a user must never see
is a `Finding`: a signal, a traceback, another exit status than the documented ones, more than one line of error, a
hang, too much memory, files left behind.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from cases import Case, keep_case, make_case

__all__ = ["MEMORY", "Finding", "Outcome", "check", "run_all"]

MEMORY = 2 << 30  # resident bytes
_ADDRESSES = MEMORY + (1 << 29)  # libraries take 0.75 GB of addresses and touch 0.3 GB
_STATUSES = (0, 1, 2, 3)
_LINE = re.compile(r"qxc: error: .+: .+")
_BATCH = 25


@dataclass
class Outcome:
    """What one input gave.

    Attributes:
        number: of the input.
        case: what was run.
        status: the exit status; the signal's name for a child that died; `hang`.
        error: standard error.
        seconds: how long it took.
        memory: resident bytes at most.
        left: files that a failed command left.
    """

    number: int | str
    case: Case
    status: int | str
    error: str
    seconds: float = 0
    memory: int = 0
    left: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Finding:
    """What is wrong, and a signature that equal defects share."""

    problem: str
    signature: str


def check(outcome: Outcome) -> Finding | None:
    """What of an outcome a user must never see."""
    lines = outcome.error.strip().splitlines()
    if isinstance(outcome.status, str):
        return Finding(outcome.status, f"{outcome.status} {_place(outcome.error)}")
    if outcome.status not in _STATUSES or "Traceback (most" in outcome.error:
        last = re.sub(r"0x[0-9a-f]+|\d+", "N", lines[-1])[:60] if lines else ""
        return Finding("traceback", f"status {outcome.status} {_place(outcome.error)} {last}")
    if outcome.status and (len(lines) != 1 or not _LINE.fullmatch(lines[0])):
        return Finding("not one line", "not one line: " + re.sub(r"\d+", "N", " | ".join(lines))[:100])
    if outcome.memory > MEMORY:
        return Finding("memory", "memory of " + outcome.case.kind)
    if outcome.left:
        return Finding("files left", "left: " + re.sub(r"\d+", "N", " ".join(outcome.left))[:80])
    if not outcome.status and any(not line.startswith("qxc: warning: ") for line in lines if "tokens" not in line):
        return Finding("noise", "noise: " + re.sub(r"\d+", "N", " | ".join(lines))[:100])
    return None


def _place(error: str) -> str:
    """Where a traceback (Python's, or faulthandler's, whose innermost frame comes first) was in the project."""
    frames = re.findall(r'File ".*?/qxcompiler/([\w/]+\.py)", line \d+,? in (\w+)', error)
    if not frames:
        return "nowhere of ours"
    if "most recent call first" in error:
        frames.reverse()
    return " < ".join(f"{path}:{function}" for path, function in frames[:-3:-1])


def run_all(numbers: Sequence[int | str], seed: int, *, workers: int, limit: float, keep: Path) -> Iterator[Outcome]:
    """Outcomes as they come.

    Args:
        numbers: which inputs, or names of `replays()`.
        seed: of all of them.
        workers: how many children at once.
        limit: seconds for one input.
        keep: a folder in which inputs with findings stay, each in a folder of its number.
    """
    waiting = list(reversed(numbers))
    children: dict[int, _Child] = {}
    work = Path(tempfile.mkdtemp(prefix="qxc-fuzz-"))
    try:
        while waiting or children:
            while waiting and len(children) < workers:
                batch = [waiting.pop() for _ in range(min(_BATCH, len(waiting)))]
                child = _Child(batch, seed, work, keep)
                children[child.pipe] = child
            ready, _, _ = select.select(list(children), [], [], 0.5)
            for pipe in list(children):
                child = children[pipe]
                if pipe in ready:
                    yield from child.read()
                elif time.monotonic() - child.since > limit:
                    child.stop()
                if child.ended:
                    yield from child.last_outcome()
                    waiting.extend(reversed(child.left))
                    del children[pipe]
    finally:
        for child in children.values():
            child.stop()
        shutil.rmtree(work, ignore_errors=True)


class _Child:
    def __init__(self, batch: list[int | str], seed: int, work: Path, keep: Path) -> None:
        self.seed, self.keep, self.left = seed, keep, list(batch)
        self.folder = Path(tempfile.mkdtemp(dir=work))
        self.pipe, write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self.pipe)
            _work(batch, seed, self.folder, keep, write)
        os.close(write)
        self.since, self.ended, self.hung, self._text = time.monotonic(), False, False, b""

    def read(self) -> Iterator[Outcome]:
        """The outcomes said on the pipe since."""
        data = os.read(self.pipe, 1 << 16)
        self.ended = not data
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            self.since = time.monotonic()
            self.left.remove(said["number"])
            yield Outcome(**said | {"case": Case(**said["case"])})

    def stop(self) -> None:
        """Let the child write where it is, and kill it."""
        self.hung = True
        try:
            os.kill(self.pid, signal.SIGUSR1)
            time.sleep(0.3)
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.since = time.monotonic()

    def last_outcome(self) -> Iterator[Outcome]:
        """What became of the input at which the child died, if it did."""
        os.close(self.pipe)
        _, status = os.waitpid(self.pid, 0)
        if self.left:
            number = self.left.pop(0)
            name = (
                "hang" if self.hung else signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "died"
            )
            error = self.folder / "stderr"
            folder = self.folder / "again"
            folder.mkdir()
            case = make_case(folder, self.seed, number)
            keep_case(self.keep / str(number), folder, case)
            yield Outcome(number, case, name, error.read_text("utf-8", "replace") if error.exists() else "")
        shutil.rmtree(self.folder, ignore_errors=True)


def _work(batch: list[int | str], seed: int, folder: Path, keep: Path, pipe: int) -> NoReturn:
    """The life of a child: no way leads out of this function but the end of the process."""
    try:
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        error = os.open(folder / "stderr", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDWR)
        for source, goal in ((nothing, 0), (nothing, 1), (error, 2)):
            os.dup2(source, goal)
        faulthandler.enable(sys.stderr)
        faulthandler.register(signal.SIGUSR1, sys.stderr)
        for number in batch:
            outcome = _run_one(number, seed, folder / str(number), error)
            if check(outcome):
                keep_case(keep / str(number), folder / str(number), outcome.case)
            shutil.rmtree(folder / str(number))
            said = json.dumps(vars(outcome) | {"case": vars(outcome.case)})
            os.write(pipe, said.encode() + b"\n")
        os._exit(0)
    except BaseException:
        os._exit(99)


def _run_one(number: int | str, seed: int, folder: Path, error: int) -> Outcome:
    import traceback

    from qxcompiler.cli import main

    folder.mkdir()
    case = make_case(folder, seed, number)
    os.chdir(folder)
    os.ftruncate(error, 0)
    before = set(os.listdir())  # noqa: PTH208
    Path("/proc/self/clear_refs").write_text("5")  # forget the largest size so far
    start, status = time.monotonic(), 99
    try:
        main(case.arguments)
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else 98
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    seconds = time.monotonic() - start
    memory = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    said = os.pread(error, 1 << 16, 0).decode("utf-8", "replace")
    left = sorted(set(os.listdir()) - before) if status else []  # noqa: PTH208
    return Outcome(number, case, status, said, seconds, memory, left)
