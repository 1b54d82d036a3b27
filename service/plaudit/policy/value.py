"""What a completion will come to, foreseen at each token: the value function of PPO.

In: the reward model's outlook on each prefix (the shaped score that the tokens so far would get) and how far the
completion is. Out: a value for each token. It is a ridge regression of the return on four numbers: a network on
hidden states learns the few completions of a rollout by heart and foresees nothing of the next ones, and nothing here
touches the policy's adapter. A completion's own return never reaches its values.
"""

from __future__ import annotations

import torch

RIDGE = 0.1
# Statistics of earlier iterations count half at each new one: the policy whose returns they hold is gone.
KEEP = 0.5
# Before the first token nothing is known: the outlook of a completion as good as its references.
BLANK = 0.5


def features(outlook: torch.Tensor, mask: torch.Tensor, longest: int) -> torch.Tensor:
    """(B, C, 4): 1, outlook before the token, share of the `longest` completion that is done, and their product."""
    done = torch.arange(mask.shape[1]).expand(mask.shape) / longest
    foreseen = torch.where(mask, outlook, BLANK)
    return torch.stack([torch.ones_like(foreseen), foreseen, done, foreseen * done], dim=-1)


class LinearValue:
    """Ridge regression of returns on `features`, over the iterations of a turn."""

    def __init__(self) -> None:
        self._gram = torch.zeros(4, 4, dtype=torch.float64)
        self._moment = torch.zeros(4, dtype=torch.float64)

    def foresee(
        self, inputs: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, second: torch.Tensor
    ) -> torch.Tensor:
        """Values (B, C) of a rollout, which is then taken in.

        `second` (B,) is True for the rollout's second half: each half's values come from the returns (B, C) of
        earlier rollouts and of the other half. Completions of one prompt belong into one half.
        """
        values = torch.zeros(mask.shape, dtype=torch.float64)
        halves = [self._statistics(inputs, returns, mask & rows[:, None]) for rows in (~second, second)]
        self._gram, self._moment = KEEP * self._gram, KEEP * self._moment
        for rows, (gram, moment) in zip((second, ~second), halves, strict=True):
            weights = _solved(self._gram + gram, self._moment + moment)
            values[rows] = inputs[rows].double() @ weights
        for gram, moment in halves:
            self._gram, self._moment = self._gram + gram, self._moment + moment
        return torch.where(mask, values, 0.0)

    @staticmethod
    def _statistics(
        inputs: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, wanted = inputs[mask].double(), returns[mask].double()
        return rows.T @ rows, rows.T @ wanted


def _solved(gram: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    weights: torch.Tensor = torch.linalg.solve(gram + RIDGE * torch.eye(len(moment), dtype=torch.float64), moment)
    return weights
