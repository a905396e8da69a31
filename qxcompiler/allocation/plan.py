"""The plan: the scheme of every site, which allocation writes, people edit, and quantization follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from qxcompiler.allocation.account import Account
from qxcompiler.errors import QxcError, TargetError
from qxcompiler.formats import Scheme
from qxcompiler.graph import Site, Weight
from qxcompiler.targets import Target
from qxcompiler.yaml_files import read_yaml

__all__ = ["FLOAT", "Plan", "load_plan", "sites_by_weight"]

FLOAT = "float"  # stands in a plan file for a site left as it is


class Plan(dict[str, Scheme | None]):
    """The scheme of every site by its name, None for a site left in floating point.

    Attributes:
        reasons: why sites were left in floating point, by their names.
        errors: where formats were compared, the error of each, by the names of sites and formats.
        account: what a budget was spent on, None where there was none.
    """

    def __init__(self, schemes: Mapping[str, Scheme | None] | None = None) -> None:
        super().__init__(schemes or {})
        self.errors: dict[str, dict[str, float]] = {}
        self.account: Account | None = None
        self.reasons = {name: "float in the plan" for name, scheme in self.items() if scheme is None}

    def leave(self, sites: Iterable[Site], reason: str) -> None:
        """Leave sites in floating point."""
        for site in sites:
            self[site.name] = None
            self.reasons[site.name] = reason

    def to_yaml(self, target: Target, sites: Sequence[Site]) -> str:
        """The plan as people edit it, the sites in the order of the graph."""
        schemes = {site.name: str(self[site.name] or FLOAT) for site in sites}
        return yaml.safe_dump({"target": target.name, "sites": schemes}, sort_keys=False, width=1000)

    def check(self, target: Target, sites: Sequence[Site], subject: object) -> None:
        """Make sure that the target can run every scheme and that sites with one weight agree on it.

        Raises:
            UnsupportedByTargetError: the target cannot.
            TargetError: an embedding has an activation precision, a linear site none, or sites of one weight disagree.
        """
        for site in sites:
            scheme = self[site.name]
            if scheme is None:
                continue
            if (scheme.activation is None) != (site.kind == "embedding"):
                wanted = "a format only" if site.kind == "embedding" else "a format and an activation precision"
                raise TargetError(subject, f"site {site.name} has scheme {scheme}", f"give {wanted}")
            target.check(scheme)
        for weight, users in sites_by_weight(sites).items():
            formats = {scheme.format.name if (scheme := self[site.name]) else FLOAT for site in users}
            if len(formats) > 1:
                names = " and ".join(site.name for site in users)
                raise TargetError(
                    subject,
                    f"{names} share weight {weight.name} and differ in format ({', '.join(sorted(formats))})",
                    "give them the same",
                )


def sites_by_weight(sites: Sequence[Site]) -> dict[Weight, list[Site]]:
    """The sites that use each weight."""
    users: dict[Weight, list[Site]] = {}
    for site in sites:
        users.setdefault(site.weight, []).append(site)
    return users


def load_plan(path: Path, target: Target, sites: Sequence[Site]) -> Plan:
    """Read a plan that `to_yaml` wrote and a person may have edited.

    Raises:
        TargetError: it cannot be read, is for another target, or does not name just the sites of the model.
    """
    remedy = "give the plan.yaml of an earlier compile"
    document = read_yaml(path, "a plan", remedy)
    schemes = document.get("sites")
    if not isinstance(schemes, dict):
        raise TargetError(path, "has no field `sites`", remedy)
    if unknown := sorted(set(map(str, document)) - {"target", "sites"}):
        raise TargetError(path, f"has an unknown field `{unknown[0]}`", "its fields are `target` and `sites`")
    if document.get("target", target.name) != target.name:
        problem = f"is a plan for target {document['target']}, not {target.name}"
        raise TargetError(path, problem, "name that target, or correct the plan's field `target`")
    names = [site.name for site in sites]
    if unknown := sorted(set(map(str, schemes)) - set(names)):
        raise TargetError(path, f"the model has no site {unknown[0]}", "see `qxc inspect` for its sites")
    if missing := sorted(set(names) - set(schemes)):
        raise TargetError(path, f"has no scheme for site {missing[0]}", f"give one, or {FLOAT}")
    try:
        return Plan({name: None if schemes[name] == FLOAT else Scheme.parse(str(schemes[name])) for name in names})
    except QxcError as error:
        raise TargetError(path, str(error), "correct the plan") from error
