"""Outputs appear under their final names only when whole, and those of an earlier run stay whole until then."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qxcompiler.errors import OutputError, QxcError, UsageError

__all__ = ["WORK", "check_sources", "has_finished_work", "output_folder", "staged"]

WORK = ".qxc-work"
"""The folder in an output for what is finished while the rest is not; it outlives a process that is killed."""

_PREFIX = ".qxc-"
# How long a reader may take from reading a model to opening its data file, in seconds.
_GRACE = 2.0
_DATA = re.compile(r"(?P<model>.+\.onnx)(\.[0-9a-f]{12})?\.data")
_REMEDY = "free the place, or choose another folder with -o"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def output_folder(output: str | os.PathLike[str]) -> Path:
    """The folder to write to.

    Raises:
        UsageError: the name is empty.
    """
    if not os.fspath(output):
        raise UsageError("the output", "has no name", "name a folder with -o")
    return Path(output)


def check_sources(sources: Iterable[Path], output: Path, names: Iterable[str]) -> None:
    """See that none of the files an output is made from would be replaced or removed by it.

    Args:
        sources: the files.
        output: the folder that will be written.
        names: what will be written to it; models may have data files (`model.onnx.0123456789ab.data`) besides.

    Raises:
        UsageError: one of them would be.
    """
    names = set(names)
    for source in sources:
        for path in (source, Path(os.path.realpath(source))):
            data = _DATA.fullmatch(path.name)
            if path.name not in names and not (data and data["model"] in names):
                continue
            if os.path.realpath(path.parent) == os.path.realpath(output):
                raise UsageError(source, "would be overwritten by the output", "name another folder with -o")


def has_finished_work(output: Path) -> bool:
    """Whether an interrupted run left something to go on from."""
    return any(next((output / WORK).glob(pattern), None) for pattern in ("*/*.safetensors", "*.jsonl"))


@contextmanager
def staged(output: Path, names: Iterable[str] = (), *, restart: bool = False) -> Iterator[Path]:
    """Give a temporary folder whose files move into `output` if the `with` body ends well, and vanish if it does not.

    The temporary folder lies in `output`, so that each move is a rename within one file system, wherever `output` is
    mounted. Files that `output` already holds under other names stay, except data files of models that are replaced;
    those under the same names are replaced, each at once: data first, models (`.onnx`) last. One process at a time
    writes a folder, where its file system has locks; what a killed one left behind is removed by the next, except the
    folder `WORK`, which goes when the body ends well or in an error, and stays when it is interrupted.

    Args:
        output: a folder, made if missing, and removed again if it was missing and the body fails.
        names: files that will be written, as far as they are known, to see first whether they can be.
        restart: remove the work that is there, too.

    Raises:
        OutputError: the folder cannot be made or written, or another process is writing it.
    """
    made = _make(output)
    try:
        folder = os.open(output, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _refused(output, error) from error
    done = alone = interrupted = False
    try:
        alone = _lock(folder, output)
        if alone:
            _remove_leftovers(folder, work=restart)
        try:
            _check_replaceable(output, names)
            stage = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=output))
        except OSError as error:
            raise _refused(output, error) from error
        try:
            yield stage
            _publish(stage, output)
            done = True
        except KeyboardInterrupt:
            interrupted = True
            raise
        except (OSError, QxcError) as error:
            if not stage.is_dir():
                raise OutputError(output, "vanished while it was written", "choose a folder that stays") from error
            cause = error.__cause__ if isinstance(error, OutputError) else error
            if isinstance(cause, OSError):
                raise _failed(output, cause) from error
            raise
        finally:
            # through the descriptor, so that a folder that was moved is tidied up, too
            shutil.rmtree(stage.name, ignore_errors=True, dir_fd=folder)
    finally:
        if alone:  # an interrupt can come before we know what was made
            _remove_leftovers(folder, work=not (interrupted and has_finished_work(output)))
        if not done:
            for path in made:
                with suppress(OSError):
                    path.rmdir()
        os.close(folder)


def _make(output: Path) -> list[Path]:
    """Make the folder and those above it; returns what was missing, the innermost first."""
    try:
        if output.exists() and not output.is_dir():
            raise OutputError(output, "is not a folder", "name a folder for the output")
        missing = [path for path in (output, *output.parents) if not path.exists()]
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(output, error) from error
    return missing


def _lock(folder: int, output: Path) -> bool:
    """Whether the folder is ours alone; the lock ends with the process at the latest."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        problem = "another process is writing it"
        raise OutputError(output, problem, "wait until it is done, or choose another folder with -o") from error
    except OSError:  # a file system without locks
        return False
    return True


def _remove_leftovers(folder: int, *, work: bool) -> None:
    """Remove what a killed process left in a folder that is locked; its work only if told to."""
    for name in os.listdir(folder):
        if name.startswith(_PREFIX) and (work or name != WORK):
            shutil.rmtree(name, ignore_errors=True, dir_fd=folder)


def _check_replaceable(output: Path, names: Iterable[str]) -> None:
    """See that nothing under these names refuses to be replaced, as a folder or a read-only file does."""
    for name in names:
        path = output / name
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(mode):
            raise OutputError(path, "is a folder", "remove it, or choose another folder with -o")
        if not stat.S_ISLNK(mode) and not mode & 0o222:
            raise OutputError(path, "is read-only", "make it writable, or choose another folder with -o")


def _publish(stage: Path, output: Path) -> None:
    """Move all files of a stage into the folder, or none."""
    files = sorted(stage.iterdir(), key=lambda path: (path.suffix == ".onnx", path.name))
    _check_replaceable(output, [path.name for path in files])
    for path in files:  # a disk that turns out to be full does so here, before anything is replaced
        with path.open("rb") as file:
            os.fsync(file.fileno())
    earlier = Path(tempfile.mkdtemp(dir=stage))
    moved: list[Path] = []
    try:
        for path in files:
            with suppress(OSError):  # nothing there, or a file system without links
                os.link(output / path.name, earlier / path.name, follow_symlinks=False)
            moved.append(path)
            path.replace(output / path.name)
    except BaseException:
        for path in reversed(moved):
            with suppress(OSError):
                _take_back(path, output / path.name, earlier / path.name)
        raise
    _remove_old_data(output, {path.name for path in files})


def _take_back(staged_file: Path, final: Path, earlier: Path) -> None:
    if staged_file.exists():  # never moved
        return
    if earlier.exists():
        earlier.replace(final)
    else:
        final.unlink()


def _remove_old_data(output: Path, written: set[str]) -> None:
    """Remove data files that the models now replaced had, after readers of those have had time to open them."""
    old = [
        path
        for path in output.iterdir()
        if (match := _DATA.fullmatch(path.name)) and match["model"] in written and path.name not in written
    ]
    if old:
        with suppress(KeyboardInterrupt):  # all is written: an interrupt only ends the waiting
            time.sleep(_GRACE)
    for path in old:
        with suppress(OSError):
            path.unlink()


def _refused(output: Path, error: OSError) -> OutputError:
    return OutputError(output, f"cannot be written ({error.strerror or error})", "choose another folder with -o")


def _failed(output: Path, error: OSError) -> OutputError:
    """The error for a failure within the `with` body, which need not be about the output."""
    place = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else None
    if error.errno in _FULL or place is None or Path(place).is_relative_to(output):
        return OutputError(output, f"cannot be written ({error.strerror or error})", _REMEDY)
    return OutputError(place, f"cannot be read ({error.strerror or error})", "check the file")
