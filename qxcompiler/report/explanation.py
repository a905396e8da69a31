"""Why a site got its scheme, from what the compile wrote: nothing is computed anew."""

from __future__ import annotations

__all__ = ["ExplainedChoice", "Explanation", "explain"]

from pathlib import Path

from pydantic import BaseModel, ValidationError

from qxcompiler.allocation.account import Choices, Limit
from qxcompiler.errors import ModelError, UsageError
from qxcompiler.report.report import Report, SiteReport

_REPORT = "report.json"
_LARGEST_REPORT = 256 << 20
_NAMED = 4  # sites in an error line


class ExplainedChoice(BaseModel):
    """One format that a group of layers could have.

    Attributes:
        format: its name.
        bytes: what the layers would take.
        error: what they would lose.
        priced: `error`, and the budget's price of what they would take: of the best choice it is the smallest, but for
            what whole choices leave of the budget.
        chosen: whether it was taken.
    """

    format: str
    bytes: int
    error: float
    priced: float
    chosen: bool


class Explanation(BaseModel):
    """Why a site got its scheme.

    Attributes:
        site: its row of the report.
        share: of the bytes of all sites.
        agrees_with: the other sites that get the same format.
        unit: what errors count; None without a budget.
        limits: of the budget, with their prices.
        choices: what was compared, the fewest bytes first.
        reasons: sentences.
    """

    site: SiteReport
    share: float
    agrees_with: list[str]
    unit: str | None
    limits: list[Limit]
    choices: list[ExplainedChoice]
    reasons: list[str]


def explain(output: str | Path, site: str) -> Explanation:
    """Explain one site of a compile.

    Args:
        output: the folder that a compile wrote, or a report in it.
        site: its name, or a part of the name that no other has.

    Raises:
        ModelError: there is no report, or it cannot be read.
        UsageError: no site, or more than one, has that name.
    """
    report = _read(Path(output))
    row = _find(report, site)
    total = sum(each.bytes for each in report.sites)
    account = report.allocation
    group = account.group_of(row.name) if account else None
    choices = _choices(group, account.limits) if account and group else []
    return Explanation(
        site=row,
        share=row.bytes / total if total else 0.0,
        agrees_with=[name for name in group.sites if name != row.name] if group else [],
        unit=account.unit if account else None,
        limits=account.limits if account else [],
        choices=choices,
        reasons=_reasons(row, account is not None, choices),
    )


def _read(output: Path) -> Report:
    path = output
    if output.is_dir():
        found = sorted(output.glob(f"*{_REPORT}"))
        if len(found) != 1:
            problem = "holds several reports" if found else f"holds no {_REPORT}"
            remedy = (
                f"name one of {', '.join(each.name for each in found)}" if found else "name what `qxc compile` wrote"
            )
            raise ModelError(output, problem, remedy)
        path = found[0]
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_REPORT + 1)
    except OSError as error:
        raise ModelError(
            path, f"cannot be read ({error.strerror or error})", "name what `qxc compile` wrote"
        ) from error
    try:
        if len(data) > _LARGEST_REPORT:
            raise ValueError
        return Report.model_validate_json(data)
    except (ValidationError, ValueError) as error:
        raise ModelError(path, "is not a report of this version", "compile the model again") from error


def _find(report: Report, name: str) -> SiteReport:
    exact = [site for site in report.sites if site.name == name]
    found = exact or [site for site in report.sites if name in site.name]
    if not found:
        raise UsageError(name, "no site has this name", "see the plan.yaml of the same folder for all")
    if len(found) > 1:
        names = ", ".join(site.name for site in found[:_NAMED])
        raise UsageError(name, f"is in the names of {len(found)} sites", f"give one of {names}, ...")
    return found[0]


def _choices(group: Choices, limits: list[Limit]) -> list[ExplainedChoice]:
    explained = [
        ExplainedChoice(
            format=choice.format,
            bytes=round(choice.costs["bytes"]),
            error=choice.error,
            priced=choice.error + sum(limit.price * choice.costs[limit.resource] for limit in limits),
            chosen=choice.format == group.chosen,
        )
        for choice in group.choices
    ]
    return sorted(explained, key=lambda choice: (choice.bytes, -choice.error))


def _reasons(row: SiteReport, has_budget: bool, choices: list[ExplainedChoice]) -> list[str]:
    if row.reason:
        return [f"It stays in floating point: {row.reason}."]
    if not choices:
        if has_budget:
            return [
                f"The budget does not choose for it ({row.role}): it has what was asked for, or the target prefers."
            ]
        return ["There was no budget: it has what the options or the plan say, or the target prefers."]
    (chosen,) = (choice for choice in choices if choice.chosen)
    best = min(choices, key=lambda choice: choice.priced)
    reasons = []
    if best is chosen:
        reasons.append(f"Of all, {chosen.format} loses least, what it takes counted at the budget's price.")
    else:
        reasons.append(
            f"At the budget's price {best.format} would do better by {chosen.priced - best.priced:.3g}; "
            "whole choices have to fit into the budget."
        )
    larger = [choice for choice in choices if choice.bytes > chosen.bytes and choice.error < chosen.error]
    smaller = [choice for choice in choices if choice.bytes < chosen.bytes]
    if larger:
        reasons.append(_step("up", chosen, min(larger, key=lambda choice: choice.bytes)))
    if smaller:
        reasons.append(_step("down", chosen, min(smaller, key=lambda choice: choice.error)))
    return reasons


def _step(way: str, chosen: ExplainedChoice, other: ExplainedChoice) -> str:
    size, error = other.bytes - chosen.bytes, other.error - chosen.error
    return (
        f"One step {way}, {other.format}: {size:+,} bytes, error {error:+.3g}, "
        f"{abs(1e6 * error / size):.3g} for a megabyte."
    )
