"""What a completion will come to, foreseen at each token: the value function of PPO.

In: the reward model's outlook on each prefix (the shaped score that the tokens so far would get) and how far the
completion is. Out: a value for each token. It is a ridge regression of the return on four numbers: a network on
hidden states learns the few completions of a rollout by heart and foresees nothing of the next ones, and nothing here
touches the policy's adapter.
"""

from __future__ import annotations

import torch

RIDGE = 0.1
# Statistics of earlier iterations count half at each new one: the policy whose returns they hold is gone.
KEEP = 0.5
# Before the first token nothing is known: the outlook of a completion as good as its references.
BLANK = 0.5


def features(outlook: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, C, 4): 1, outlook before the token, share of the longest completion that is done, and their product."""
    done = torch.arange(mask.shape[1]).expand(mask.shape) / mask.shape[1]
    foreseen = torch.where(mask, outlook, BLANK)
    return torch.stack([torch.ones_like(foreseen), foreseen, done, foreseen * done], dim=-1)


class LinearValue:
    """Ridge regression of returns on `features`, over the iterations of a turn."""

    def __init__(self) -> None:
        self._gram = torch.zeros(4, 4, dtype=torch.float64)
        self._moment = torch.zeros(4, dtype=torch.float64)

    def learn(self, inputs: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> None:
        """Take in a rollout's returns (B, C)."""
        rows, wanted = inputs[mask].double(), returns[mask].double()
        self._gram = KEEP * self._gram + rows.T @ rows
        self._moment = KEEP * self._moment + rows.T @ wanted

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Values (B, C)."""
        weights = torch.linalg.solve(self._gram + RIDGE * torch.eye(4, dtype=torch.float64), self._moment)
        values: torch.Tensor = (inputs.double() @ weights).to(inputs.dtype)
        return values
