"""What a budget was spent on: what `report.json` keeps of it, and `qxc explain` reads."""

from __future__ import annotations

__all__ = ["Account", "Choice", "Choices", "Limit"]

from pydantic import BaseModel


class Limit(BaseModel):
    """One limit of a budget.

    Attributes:
        option: as the user gave it.
        resource: what it limits: `bytes` of packed weights; `file bytes`, of which there are a few more because
            tensors are filled up; `seconds` or `joules` of a run.
        limit: what the chosen layers may take of it.
        used: what they take.
        price: by how much the sum of errors would fall for one unit more, where choices could be mixed.
    """

    option: str
    resource: str
    limit: float
    used: float = 0.0
    price: float = 0.0


class Choice(BaseModel):
    """One format that a group of layers could have.

    Attributes:
        format: its name.
        error: the sum of what the layers would lose.
        costs: what they would take, by resource.
    """

    format: str
    error: float
    costs: dict[str, float]


class Choices(BaseModel):
    """Layers that one operator computes, or that share a weight: they get one format.

    Attributes:
        sites: their names.
        weights: how many numbers their weights hold.
        chosen: the name of a format.
        choices: the formats that were compared.
    """

    sites: list[str]
    weights: int
    chosen: str
    choices: list[Choice]

    def taken(self) -> Choice:
        """The choice that was made."""
        return next(choice for choice in self.choices if choice.format == self.chosen)


class Account(BaseModel):
    """How a budget was spent.

    Attributes:
        term: which errors were summed up, as `--error` names them.
        unit: what they count.
        expected_error: the sum of the errors of what was chosen.
        least_error: what no choices within the limits can do better than.
        limits: what was asked for.
        groups: the layers that had a choice.
    """

    term: str
    unit: str
    expected_error: float
    least_error: float
    limits: list[Limit]
    groups: list[Choices]

    def group_of(self, site: str) -> Choices | None:
        """The layers that a site agrees with; None for one that had no choice."""
        return next((group for group in self.groups if site in group.sites), None)

    def used(self, resource: str) -> float:
        """What the layers that had a choice take of a resource."""
        return sum(choice.costs[resource] for choice in map(Choices.taken, self.groups))
