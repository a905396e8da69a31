"""The plan: the scheme of every site, which allocation writes, people edit, and quantization follows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
import yaml

from qxcompiler.errors import QxcError, TargetError, UsageError
from qxcompiler.formats import Scheme, check_activation, parse_format
from qxcompiler.graph import Site, Weight, readers
from qxcompiler.packing import packed_bytes
from qxcompiler.targets import Target
from qxcompiler.yaml_files import read_yaml

__all__ = ["FLOAT", "Plan", "load_plan", "sites_by_weight", "uniform_plan"]

FLOAT = "float"  # stands in a plan file for a site left as it is


class Plan(dict[str, Scheme | None]):
    """The scheme of every site by its name, None for a site left in floating point.

    Attributes:
        reasons: why sites were left in floating point, by their names.
    """

    def __init__(self, schemes: Mapping[str, Scheme | None] | None = None) -> None:
        super().__init__(schemes or {})
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


def uniform_plan(
    sites: Sequence[Site],
    target: Target,
    *,
    weights: str | None = None,
    activations: str | None = None,
    head: str | None = None,
    embedding: str | None = None,
    keep: str | None = None,
) -> Plan:
    """One scheme for all linear layers, one for the head and one for embeddings, where packing makes a weight smaller.

    Args:
        sites: the sites of the model.
        target: what it prefers fills what is not given.
        weights: the format of linear layers other than the head.
        activations: the activation precision of all linear layers.
        head: the format of the head, or `float`. A head and an embedding of one weight agree.
        embedding: the format of embeddings, or `float`.
        keep: sites whose name or role this regular expression finds stay in floating point, and with them those that
            share their weight.

    Raises:
        UsageError: one of the arguments is not valid, `keep` finds no site, or nothing is left to quantize.
    """
    preferred = target.preferred
    precision = check_activation(activations) if activations else None
    schemes = {
        "linear": Scheme(parse_format(weights) if weights else preferred.linear.format, None),
        "head": _scheme_or_float(head, preferred.head),
        "embedding": _scheme_or_float(embedding, preferred.embedding),
    }
    precisions = {"linear": precision or preferred.linear.activation, "head": precision or preferred.head.activation}
    kept = _kept(sites, keep)

    plan = Plan()
    for users in sites_by_weight(sites).values():
        roles = {site.role for site in users}
        if not kept.isdisjoint(users):
            plan.leave(users, f"kept by --keep {keep}")
            continue
        if {"head", "embedding"} <= roles and head and embedding and head != embedding:
            names = " and ".join(site.name for site in users)
            problem, remedy = f"differs from --embedding {embedding}, but {names} share a weight", "give them the same"
            raise UsageError(f"--head {head}", problem, remedy)
        decides = "head" if "head" in roles else "embedding" if roles == {"embedding"} else "linear"
        if {"head", "embedding"} <= roles and embedding and not head:
            decides = "embedding"
        scheme = schemes[decides]
        if scheme is None:
            plan.leave(users, f"kept by --{decides} {FLOAT}")
            continue
        precision_of = precisions["head" if "head" in roles else "linear"]
        for site in users:
            plan[site.name] = Scheme(scheme.format, None if site.kind == "embedding" else precision_of)
    if not any(plan.values()):
        kept_by = {"--keep": keep, "--head": head, "--embedding": embedding}
        asked = " ".join(f"{option} {value}" for option, value in kept_by.items() if value)
        raise UsageError(asked, "leaves no site to quantize", "keep fewer")
    _leave_what_packing_does_not_shrink(plan, sites)
    return plan


def _scheme_or_float(given: str | None, preferred: Scheme) -> Scheme | None:
    if given is None:
        return preferred
    return None if given == FLOAT else Scheme(parse_format(given), None)


def _kept(sites: Sequence[Site], keep: str | None) -> set[Site]:
    """The sites that `--keep` finds."""
    if keep is None:
        return set()
    try:
        pattern = re.compile(keep)
    except re.error as error:
        raise UsageError(f"--keep {keep}", f"not a regular expression ({error})", "correct it") from error
    kept = {site for site in sites if pattern.search(site.name) or pattern.search(site.role)}
    if not kept:
        raise UsageError(f"--keep {keep}", "finds no site by name or role", "see `qxc inspect` for both")
    return kept


def _leave_what_packing_does_not_shrink(plan: Plan, sites: Sequence[Site]) -> None:
    """Leave sites in floating point whose initializer, packed for all its uses, would not take fewer bytes."""
    users_of: dict[ir.Value, list[Site]] = {}
    for site in sites:
        users_of.setdefault(site.weight.value, []).append(site)
    nodes = {site.node for site in sites if plan[site.name]}
    for value, users in users_of.items():
        formats = {site.weight: scheme.format for site in users if (scheme := plan[site.name])}
        if not formats:
            continue
        packed = sum(packed_bytes(fmt, weight.out_features, weight.in_features) for weight, fmt in formats.items())
        stored = users[0].weight.nbytes
        if others := _other_readers(value, nodes):
            stays = f"{' and '.join(others)} read the same weight, which would be stored twice"
        elif packed >= stored:
            stays = f"packing would not make it smaller ({stored} bytes, {packed} packed)"
        else:
            continue
        plan.leave(users, stays)


def _other_readers(value: ir.Value, sites: set[ir.Node]) -> list[str]:
    """What reads an initializer besides the nodes of sites."""
    nodes, is_output = readers(value)
    return sorted({node.op_type for node in nodes if node not in sites} | ({"the output"} if is_output else set()))


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
