"""Outputs appear under their final names only when whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qxcompiler.errors import OutputError

__all__ = ["staged"]


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """Give a temporary folder whose files move into `output` when the block ends well, and vanish when it does not.

    Files that `output` already holds under other names stay; those under the same names are replaced, each at once.

    Args:
        output: a folder, made if missing.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(output, "is not a folder", "name a folder for the output")
    existing = next(parent for parent in (output, *output.absolute().parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        raise OutputError(output, "cannot be written (permission denied)", "choose another folder with -o")
    stage: Path | None = None
    try:
        # beside the output, so that a move is a rename
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.absolute().parent))
        yield stage
        output.mkdir(exist_ok=True)
        for file in sorted(stage.iterdir()):
            file.replace(output / file.name)
    except OSError as error:
        raise OutputError(
            output,
            f"cannot be written ({error.strerror or error})",
            "free the place, or choose another folder with -o",
        ) from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
