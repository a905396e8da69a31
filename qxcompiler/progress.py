"""How long work will still take: progress bars that are silent where nobody looks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["Track", "silent", "track_on_terminal"]

T = TypeVar("T")


class Track(Protocol):
    """Wraps items to show how far the work on them is."""

    def __call__(self, items: Sequence[T], description: str) -> Iterable[T]: ...


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Items a second."""
        return Text(f"{task.speed:.2f}/s" if task.speed else "")


def silent(items: Sequence[T], description: str) -> Iterable[T]:
    """Show nothing."""
    return items


def track_on_terminal(items: Sequence[T], description: str) -> Iterable[T]:
    """Show a bar with rate and time left on standard error, if it is a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield from progress.track(items, description=description)
