"""The plan: the scheme of every site, which allocation writes, people edit, and quantization follows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from qxcompiler.errors import QxcError, TargetError, UsageError
from qxcompiler.formats import Scheme, check_activation, parse_format
from qxcompiler.graph import Site, Weight
from qxcompiler.targets import Target

__all__ = ["FLOAT", "Plan", "load_plan", "sites_by_weight", "uniform_plan"]

FLOAT = "float"  # stands in a plan file for a site left as it is

_LARGEST_FILE = 64 << 20


class Plan(dict[str, Scheme | None]):
    """The scheme of every site by its name, None for a site left in floating point."""

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


def uniform_plan(
    sites: Sequence[Site], target: Target, weights: str | None, activations: str | None, keep: str | None
) -> Plan:
    """One scheme for all linear layers; head and embeddings as the target prefers them.

    Args:
        sites: the sites of the model.
        target: what it prefers fills what is not given.
        weights: the format of linear layers other than the head.
        activations: the activation precision of all linear layers.
        keep: sites whose name or role this regular expression finds stay in floating point, and with them those that
            share their weight.

    Raises:
        UsageError: one of the arguments is not valid, or `keep` leaves nothing to quantize.
    """
    preferred = target.preferred
    linear = Scheme(
        parse_format(weights) if weights else preferred.linear.format,
        check_activation(activations) if activations else preferred.linear.activation,
    )
    head = Scheme(preferred.head.format, activations or preferred.head.activation)
    try:
        kept = re.compile(keep) if keep is not None else None
    except re.error as error:
        raise UsageError(f"--keep {keep}", f"not a regular expression ({error})", "correct it") from error

    plan = Plan()
    for users in sites_by_weight(sites).values():
        if kept and any(kept.search(site.name) or kept.search(site.role) for site in users):
            plan.update({site.name: None for site in users})
            continue
        roles = {site.role for site in users}
        scheme = head if "head" in roles else preferred.embedding if roles == {"embedding"} else linear
        for site in users:
            plan[site.name] = Scheme(scheme.format, None) if site.kind == "embedding" else scheme
    if not any(plan.values()):
        raise UsageError(f"--keep {keep}", "leaves no site to quantize", "keep fewer")
    return plan


def load_plan(path: Path, sites: Sequence[Site]) -> Plan:
    """Read a plan that `to_yaml` wrote and a person may have edited.

    Raises:
        TargetError: it cannot be read, or does not name just the sites of the model.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise TargetError(path, "too large for a plan", "give the plan.yaml of an earlier compile")
        document: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise TargetError(path, f"not a readable plan ({error})", "give the plan.yaml of an earlier compile") from error
    schemes = document.get("sites") if isinstance(document, dict) else None
    if not isinstance(schemes, dict):
        raise TargetError(path, "has no field `sites`", "give the plan.yaml of an earlier compile")
    names = [site.name for site in sites]
    if unknown := sorted(set(map(str, schemes)) - set(names)):
        raise TargetError(path, f"the model has no site {unknown[0]}", "see `qxc inspect` for its sites")
    if missing := sorted(set(names) - set(schemes)):
        raise TargetError(path, f"has no scheme for site {missing[0]}", f"give one, or {FLOAT}")
    try:
        return Plan({name: None if schemes[name] == FLOAT else Scheme.parse(str(schemes[name])) for name in names})
    except QxcError as error:
        raise TargetError(path, str(error), "correct the plan") from error
