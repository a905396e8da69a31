"""One scheme for all sites of a kind."""

from __future__ import annotations

import re
from collections.abc import Sequence

import onnx_ir as ir

from qxcompiler.allocation.plan import FLOAT, Plan, sites_by_weight
from qxcompiler.allocation.question import Question
from qxcompiler.dialects import Dialect
from qxcompiler.errors import UsageError
from qxcompiler.formats import Scheme, check_activation, parse_format
from qxcompiler.graph import Site, readers

__all__ = ["uniform"]


def uniform(question: Question) -> Plan:
    """One scheme for all linear layers, one for the head and one for embeddings, where packing makes a weight smaller.

    What the options `weights`, `activations`, `head` and `embedding` do not say, the target prefers. A head and an
    embedding of one weight agree. What `keep` finds stays in floating point, and so does what shares its weight. Sites
    that are pinned have what they are pinned to.

    Raises:
        UsageError: one of the options is not valid, `keep` finds no site, or nothing is left to quantize.
    """
    options, sites, preferred = question.options, question.sites, question.target.preferred
    head, embedding = options.head, options.embedding
    precision = check_activation(options.activations) if options.activations else None
    schemes = {
        "linear": Scheme(parse_format(options.weights) if options.weights else preferred.linear.format, None),
        "head": _scheme_or_float(head, preferred.head),
        "embedding": _scheme_or_float(embedding, preferred.embedding),
    }
    precisions = {"linear": precision or preferred.linear.activation, "head": precision or preferred.head.activation}
    kept = _kept(sites, options.keep)

    plan = Plan()
    for users in sites_by_weight(sites).values():
        roles = {site.role for site in users}
        if not kept.isdisjoint(users):
            plan.leave(users, f"kept by --keep {options.keep}")
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
            plan[site.name] = Scheme(scheme.format, precision_of if site.multiplies_activations else None)
    if not any(plan.values()):
        kept_by = {"--keep": options.keep, "--head": head, "--embedding": embedding}
        asked = " ".join(f"{option} {value}" for option, value in kept_by.items() if value)
        raise UsageError(asked, "leaves no site to quantize", "keep fewer")
    _leave_what_misfits(plan, sites, question.target.emits)
    _leave_what_packing_does_not_shrink(plan, sites, question.target.emits)
    if question.pinned is not None:
        plan.pin(question.pinned)
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


def _leave_what_misfits(plan: Plan, sites: Sequence[Site], dialect: Dialect) -> None:
    """Leave weights in floating point that their schemes cannot be written at all sites of."""
    for users in sites_by_weight(sites).values():
        for site in users:
            if (scheme := plan[site.name]) and (reason := dialect.misfits(site, scheme)):
                plan.leave(users, reason)


def _leave_what_packing_does_not_shrink(plan: Plan, sites: Sequence[Site], dialect: Dialect) -> None:
    """Leave sites in floating point whose initializer, packed for all its uses, would not take fewer bytes."""
    users_of: dict[ir.Value, list[Site]] = {}
    for site in sites:
        users_of.setdefault(site.weight.value, []).append(site)
    nodes = {site.node for site in sites if plan[site.name]}
    for value, users in users_of.items():
        formats = {site.weight: scheme.format for site in users if (scheme := plan[site.name])}
        if not formats:
            continue
        packed = sum(dialect.weight_bytes(fmt, weight) for weight, fmt in formats.items())
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
