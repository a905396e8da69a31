"""The plan: the scheme of every site, which allocation writes, people edit, and quantization follows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from qxcompiler.allocation.account import Account
from qxcompiler.dialects import Dialect
from qxcompiler.errors import QxcError, TargetError, UnsupportedByTargetError
from qxcompiler.formats import Scheme
from qxcompiler.graph import Site, Weight
from qxcompiler.targets import Target
from qxcompiler.yaml_files import Lines, read_yaml_with_lines

__all__ = ["FLOAT", "Plan", "load_plan", "sites_by_weight"]

FLOAT = "float"  # stands in a plan file for a site left as it is


class Plan(dict[str, Scheme | None]):
    """The scheme of every site by its name, None for a site left in floating point.

    Attributes:
        reasons: why sites were left in floating point, by their names.
        errors: where formats were compared, the error of each, by the names of sites and formats.
        path, lines: the file it was read from, if it was, and where in it each value stands.
        account: what a budget was spent on, None where there was none.
    """

    def __init__(self, schemes: Mapping[str, Scheme | None] | None = None) -> None:
        super().__init__(schemes or {})
        self.errors: dict[str, dict[str, float]] = {}
        self.account: Account | None = None
        self.path: Path | None = None
        self.lines: Lines = {}
        self.reasons = {name: "float in the plan" for name, scheme in self.items() if scheme is None}

    def leave(self, sites: Iterable[Site], reason: str) -> None:
        """Leave sites in floating point."""
        for site in sites:
            self[site.name] = None
            self.reasons[site.name] = reason

    def pin(self, other: Plan) -> None:
        """Take over what another plan says of some sites."""
        for name, scheme in other.items():
            self[name] = scheme
            self.reasons.pop(name, None)
        self.reasons |= other.reasons
        self.path, self.lines = other.path, other.lines

    def to_yaml(self, target: Target, sites: Sequence[Site]) -> str:
        """The plan as people edit it: a line a site, in the order of the graph, with what it came to as comments."""
        rows, total = self._sizes(sites, target.emits)
        lines = [f"# {line}" for line in self._results(total, sites)]
        lines += [_yaml({"target": target.name}), "sites:"]
        for site in sites:
            scheme, size = self[site.name], rows[site.name]
            said = [] if size is None else [f"{size:,} bytes", f"{size / total:.2%}"]
            if scheme and (error := self.errors.get(site.name, {}).get(scheme.format.name)) is not None:
                said.append(f"error {error:.3g}")
            entry = _yaml({site.name: str(scheme or FLOAT)}).replace("\n", "\n  ")
            lines.append(f"  {entry}  # {', '.join(said) or 'its weight is counted above'}")
        return "\n".join([*lines, ""])

    def _sizes(self, sites: Sequence[Site], dialect: Dialect) -> tuple[dict[str, int | None], int]:
        """What the weight of each site takes, None where an earlier site has it too; and all of them."""
        rows: dict[str, int | None] = {site.name: None for site in sites}
        for weight, users in sites_by_weight(sites).items():
            scheme = self[users[0].name]
            rows[users[0].name] = dialect.weight_bytes(scheme.format, weight) if scheme else weight.nbytes
        return rows, sum(size for size in rows.values() if size is not None)

    def _results(self, total: int, sites: Sequence[Site]) -> Iterator[str]:
        weights = sum(weight.out_features * weight.in_features for weight in sites_by_weight(sites))
        yield f"{total:,} bytes in {len(sites)} sites, {8 * total / weights:.3f} bits a weight"
        if self.account is None:
            return
        used, chosen = self.account.used("bytes"), sum(group.weights for group in self.account.groups)
        for limit in self.account.limits:
            yield f"{limit.option}: {limit.used / limit.limit:.3%} used"
        yield f"{used:,.0f} bytes where there was a choice, {8 * used / chosen:.3f} bits a weight"
        yield f"expected error {self.account.expected_error:.4g}, {self.account.term}: {self.account.unit}"

    def check(self, target: Target, sites: Sequence[Site]) -> None:
        """Make sure that the target can run every scheme and that sites with one weight agree on it.

        Raises:
            UnsupportedByTargetError: the target cannot.
            TargetError: a site has an activation precision that has none, or none, or sites of one weight disagree.
        """
        for site in sites:
            scheme = self[site.name]
            if scheme is None:
                continue
            if (scheme.activation is None) == site.multiplies_activations:
                wanted = "a format and an activation precision" if site.multiplies_activations else "a format only"
                raise TargetError(self.place(site.name), f"site {site.name} has scheme {scheme}", f"give {wanted}")
            if site.kind == "embedding" and scheme.format.rotated:
                problem = f"site {site.name} has scheme {scheme}, but its rows are looked up, not multiplied"
                raise TargetError(self.place(site.name), problem, "leave out the h")
            try:
                target.check(scheme)
            except UnsupportedByTargetError as error:
                if self.path is None:
                    raise
                problem = f"site {site.name}: {error.subject} {error.problem}"
                raise UnsupportedByTargetError(self.place(site.name), problem, error.remedy) from error
            if reason := target.emits.misfits(site, scheme):
                problem = f"site {site.name} has scheme {scheme}, but {reason}"
                raise TargetError(self.place(site.name), problem, f"give another, or {FLOAT}")
        for weight, users in sites_by_weight(sites).items():
            formats = {scheme.format.name if (scheme := self[site.name]) else FLOAT for site in users}
            if len(formats) > 1:
                names = " and ".join(site.name for site in users)
                raise TargetError(
                    self.place(users[-1].name),
                    f"{names} share weight {weight.name} and differ in format ({', '.join(sorted(formats))})",
                    "give them the same",
                )

    def place(self, site: str) -> str:
        """Where the plan says a site's scheme: a file and a line, if it was read from one."""
        return "the plan" if self.path is None else _place(self.path, self.lines, "sites", site)


def sites_by_weight(sites: Sequence[Site]) -> dict[Weight, list[Site]]:
    """The sites that use each weight."""
    users: dict[Weight, list[Site]] = {}
    for site in sites:
        users.setdefault(site.weight, []).append(site)
    return users


def load_plan(path: Path, target: Target, sites: Sequence[Site], *, partial: bool = False) -> Plan:
    """Read a plan that `to_yaml` wrote and a person may have edited.

    Args:
        path: the file.
        target: what it has to be for.
        sites: of the model.
        partial: whether it may leave out sites.

    Raises:
        TargetError: it cannot be read, is for another target, or does not name just the sites of the model; the line
            at fault is named.
    """
    remedy = "give the plan.yaml of an earlier compile"
    document, lines = read_yaml_with_lines(path, "a plan", remedy)
    schemes = document.get("sites")
    if not isinstance(schemes, dict):
        raise TargetError(path, "has no field `sites`", remedy)
    if unknown := sorted(set(document) - {"target", "sites"}):
        problem = f"has an unknown field `{unknown[0]}`"
        raise TargetError(_place(path, lines, unknown[0]), problem, "its fields are `target` and `sites`")
    if document.get("target", target.name) != target.name:
        problem = f"is a plan for target {document['target']}, not {target.name}"
        remedy = "name that target, or correct the plan's field `target`"
        raise TargetError(_place(path, lines, "target"), problem, remedy)
    known = {site.name for site in sites}
    names = [site.name for site in sites if site.name in schemes or not partial]
    if unknown := sorted(set(map(str, schemes)) - known):
        problem = f"the model has no site {unknown[0]}"
        raise TargetError(_place(path, lines, "sites", unknown[0]), problem, "see `qxc inspect` for its sites")
    if missing := sorted(set(names) - set(schemes)):
        raise TargetError(path, f"has no scheme for site {missing[0]}", f"give one, or {FLOAT}")
    parsed = {}
    for name in names:
        try:
            parsed[name] = None if schemes[name] == FLOAT else Scheme.parse(str(schemes[name]))
        except QxcError as error:
            raise TargetError(
                _place(path, lines, "sites", name), f"site {name}: {error}", "correct the plan"
            ) from error
    plan = Plan(parsed)
    plan.path, plan.lines = path, lines
    return plan


def _place(path: Path, lines: Lines, *keys: str) -> str:
    return f"{path}:{lines[keys]}" if keys in lines else str(path)


def _yaml(fields: Mapping[str, str]) -> str:
    return yaml.safe_dump(dict(fields), width=math.inf).rstrip("\n")
