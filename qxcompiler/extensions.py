"""What installed packages add: entry points of the groups `qxcompiler.allocations`, `.formats`, `.operators`,
`.passes`, `.quantizers` and `.targets`.

An SDK registers its own in its `pyproject.toml`, and nothing here has to know it:

    [project.entry-points."qxcompiler.quantizers"]
    mine = "my_sdk.quantizers:MINE"
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from qxcompiler.errors import UsageError

__all__ = ["extensions", "find", "named"]

T = TypeVar("T")


def extensions(group: str) -> dict[str, Any]:
    """What packages register in a group, by name, in the order of the names.

    Args:
        group: `allocations`, functions as `qxcompiler.allocation.Allocation`; `formats`, functions from a format's name
            to a `Format`, or None for a name of others; `operators`, each an `Operator` of
            `qxcompiler.runtime_ops.operators` under its name; `passes`, as `qxcompiler.passes.pipelines` says;
            `quantizers`, each a `qxcompiler.quantizers.Quantizer`; `targets`, the path of a descriptor, or a function
            that gives it.

    Raises:
        UsageError: one of them cannot be loaded.
    """
    return {entry.name: _load(entry) for entry in sorted(entry_points(group=f"qxcompiler.{group}"))}


def find(group: str, name: str, built_in: Mapping[str, T]) -> T | None:
    """What has that name in a group: built in, or else from a package.

    Raises:
        UsageError: it is not built in, and what packages add cannot be loaded.
    """
    if name in built_in:
        return built_in[name]
    added: Mapping[str, T] = extensions(group)
    return added.get(name)


def named(group: str, name: str, built_in: Mapping[str, T]) -> T:
    """As `find`, for a name that must be there.

    Raises:
        UsageError: it is not, or what packages add cannot be loaded.
    """
    found = find(group, name, built_in)
    if found is None:
        known = ", ".join([*built_in, *extensions(group)])
        raise UsageError(repr(name), f"no such {group.removesuffix('s')}", f"choose one of {known}")
    return found


def _load(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except Exception as error:  # it is anybody's code
        package = entry.dist.name if entry.dist else "a package"
        problem = f"its entry point {entry.name} ({entry.value}) cannot be loaded ({error})"
        raise UsageError(package, problem, "mend it, or uninstall it") from error
