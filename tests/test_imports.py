"""Modules import each other in one direction: what `docs/architecture.md` draws has no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).parent.parent
FOLDERS = ("qxcompiler", "qxcompiler_runtime", "passes", "targets", "runtime_ops", "models")
PACKAGE = "qxcompiler"
RUNTIME = "qxcompiler_runtime"


def modules() -> dict[str, Path]:
    found = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if parts[0] in (PACKAGE, RUNTIME) else (PACKAGE, *parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_at_once(tree: ast.Module) -> Iterator[tuple[str, list[str]]]:
    """What is imported as the module is, not within functions; for type checkers too."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        statement = waiting.pop()
        if isinstance(statement, ast.ImportFrom) and statement.module:
            yield statement.module, [alias.name for alias in statement.names]
        elif isinstance(statement, ast.Import):
            yield from ((alias.name, []) for alias in statement.names)
        elif isinstance(statement, (ast.If, ast.Try)):
            waiting += [*statement.body, *statement.orelse]


def imports() -> nx.DiGraph:
    known = modules()
    graph = nx.DiGraph()
    graph.add_nodes_from(known)
    for name, path in known.items():
        if name in (PACKAGE, RUNTIME):  # these name what lies deeper, and import it when it is asked for
            continue
        for module, names in imported_at_once(ast.parse(path.read_text())):
            # a name is a module, or comes from one: importing a package imports its `__init__`
            targets = {f"{module}.{each}" for each in names if f"{module}.{each}" in known} or {module}
            graph.add_edges_from((name, target) for target in targets if target in known and target != PACKAGE)
    return graph


def test_there_are_no_circles():
    graph = imports()
    assert graph.number_of_edges() > 200
    # within a package, `__init__` collects what the modules beside it say
    inner = [(a, b) for a, b in graph.edges if a.startswith(f"{b}.")]
    assert not inner, "a module imports its own package: name the module that has it"
    assert nx.is_directed_acyclic_graph(graph), nx.find_cycle(graph)


def part(module: str) -> str:
    return RUNTIME if module.partition(".")[0] == RUNTIME else module.split(".")[1]


def test_parts_know_what_the_architecture_says():
    """Packages, not modules: none imports another that imports it."""
    parts = nx.DiGraph()
    for a, b in imports().edges:
        first, second = part(a), part(b)
        if first != second:
            parts.add_edge(first, second)
    assert nx.is_directed_acyclic_graph(parts), nx.find_cycle(parts)
    for low in ("errors", "formats", "graph"):
        assert set(parts.successors(low)) <= {"errors", "extensions", RUNTIME}, (low, set(parts.successors(low)))
    assert not set(parts.successors(RUNTIME))
    described = {"dialects", "errors", "extensions", "formats", "yaml_files"}
    assert set(parts.successors("targets")) <= described
    # what is chosen asks what it costs, never the other way
    assert set(parts.successors("cost")) <= {*described, "graph", "packing", "runtime_ops", "targets", RUNTIME}
