"""Who asks what, and who rates it how: drawn before anything is sent, so that a seed fixes it.

A population's prompts, raters and mix of kinds enter, visits leave. Every prompt is asked once before any is asked
again: gates find their questions in the log.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from plaudit.simulate.population import Rater, SimPrompt
from plaudit.types import FeedbackKind

# Completions that a kind needs to be about something; of options people always see all.
SHOWN_FOR = {FeedbackKind.CHOICE: 2, FeedbackKind.RANKING: 4}


@dataclass(frozen=True, slots=True)
class Visit:
    """One interaction to come: a prompt, the completions wanted, and who will give which kind of feedback."""

    index: int
    prompt: SimPrompt
    n: int
    acts: tuple[tuple[Rater, FeedbackKind], ...]
    with_base: bool = False


def visits(
    prompts: Sequence[SimPrompt],
    raters: Sequence[Rater],
    mix: Mapping[FeedbackKind, float],
    *,
    seed: int | str,
    events: int | None,
    acts_per_interaction: float = 3.3,
    base_share: float = 0.0,
) -> Iterator[Visit]:
    """Visits until their acts number `events`; without end if that is None.

    `base_share` of the interactions with two completions or more get one of them from the base.
    """
    rng = random.Random(f"visits:{seed}")
    planned = index = 0
    order: list[SimPrompt] = []
    kinds, shares = zip(*mix.items(), strict=True)
    while events is None or planned < events:
        if not order:
            order = list(prompts)
            rng.shuffle(order)
        number = _about(acts_per_interaction, rng)
        if events is not None:
            number = min(number, events - planned)
        wanted = rng.choices(kinds, shares, k=number)
        n = max((SHOWN_FOR.get(kind, 1) for kind in wanted), default=1)
        people = rng.sample(raters, min(number, len(raters)))
        with_base = n > 1 and rng.random() < base_share
        yield Visit(index, order.pop(), n, tuple(zip(people, wanted, strict=False)), with_base)
        planned += min(number, len(people))
        index += 1


def _about(mean: float, rng: random.Random) -> int:
    """A whole number next to `mean`, drawn so that the mean is kept; at least 1 if `mean` is."""
    low = int(mean)
    return low + (rng.random() < mean - low)
