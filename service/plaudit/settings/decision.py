"""`decision.*`: what decisions cost."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from plaudit.deciding import cost_faults
from plaudit.settings.section import Section


class DecisionSettings(Section):
    """What decisions cost in domains of verdicts (docs/serving.md)."""

    costs: tuple[tuple[str, str, float], ...] = ()
    """(true label, decided label, cost): each comes before the domain's own cost of that pair; 0 or more."""

    @model_validator(mode="after")
    def _costs_are_costs(self) -> Self:
        if faults := cost_faults(self.costs):
            raise ValueError(faults[0])
        return self
