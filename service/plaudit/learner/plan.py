"""How much feedback a first release takes, before anybody has given any: `plaudit learn plan`.

Enters: who gives feedback and of what kinds. Leaves: the number of acts after which every need of a first turn is met,
and which need decides. People and salts are drawn, and their acts are counted by the very functions that the learner
asks (`needs`), so there is no second copy of a rule. It says when a turn begins, not whether its gate accepts. No
torch.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from plaudit.evidence.splits import Split, group_split, rater_split
from plaudit.evidence.store import EvidenceRow, FrozenDataSet
from plaudit.learner import needs
from plaudit.learner.outcome import Need
from plaudit.reward.comparisons import MOST_CONTRASTS_OF_ONE
from plaudit.reward.dataset import collect
from plaudit.settings import Settings
from plaudit.types import (
    Action,
    Binary,
    Candidate,
    Channel,
    Evidence,
    FeedbackKind,
    Interaction,
    Pair,
    PairOutcome,
    Purpose,
    RankingEvidence,
    Sampling,
)

DRAWS = 20
MOST_ACTS = 6_400
_FIRST_ACTS = 25
_CLOSE = 0.04  # of the number sought, which is shown in two figures
SAFE = 0.9
# Share of thumbs that point up: contrasts need both ways.
UP = 0.6
_NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_CHANNEL = Channel("plan", "plan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Who gives feedback: `raters` people, each act by one of them, its kind drawn by these shares.

    Each prompt gets `per_prompt` acts on average.
    """

    raters: int
    thumbs: float = 0.0
    choices: float = 0.0
    rankings: float = 0.0
    per_prompt: float = 1.0

    def __post_init__(self) -> None:
        shares = (self.thumbs, self.choices, self.rankings)
        if self.raters < 1 or self.per_prompt < 1 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(
                f"{self.raters} raters with {self.thumbs:.0%} thumbs, {self.choices:.0%} choices and "
                f"{self.rankings:.0%} rankings, {self.per_prompt:g} pieces of feedback per prompt: write at least "
                "one rater, at least one piece per prompt, and shares that add up to 100%"
            )

    def __str__(self) -> str:
        """Return, for example, "40 raters: 70% thumbs, 20% choices, 10% rankings of 4"."""
        named = ((self.thumbs, "thumbs"), (self.choices, "choices"), (self.rankings, f"rankings of {needs.RANKED}"))
        return f"{self.raters} raters: {', '.join(f'{share:.0%} {what}' for share, what in named if share)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """After how many acts something is met: in half of the draws, and in nine of ten; None if it never is."""

    half: int | None
    safe: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Acts until a first turn begins, and until each need is met; `decides`: the need that most often comes last."""

    mix: Mix
    whole: Reach
    needs: tuple[tuple[Need, Reach], ...]
    decides: str


def plan(mix: Mix, settings: Settings, *, few_raters: bool = False, seed: int = 0) -> Plan:
    """The plan of a mix under a channel's settings; equal arguments give equal plans."""
    people = [_People(mix, settings, few_raters, random.Random(f"{seed} {draw}")) for draw in range(DRAWS)]
    # Which comparisons judge (pairs, or contrasts between thumbs) follows from the mix: names are those at the end.
    whole = [each.first(None) for each in people]
    every = [each.needs(acts or MOST_ACTS) for each, acts in zip(people, whole, strict=True)]
    single = [[each.first(place) for each in people] for place in range(len(every[0]))]
    last = [max(range(len(single)), key=lambda place: single[place][draw] or MOST_ACTS + 1) for draw in range(DRAWS)]
    decides = max(set(last), key=lambda place: (last.count(place), -place))
    return Plan(
        mix=mix,
        whole=_reach(whole),
        needs=tuple((need, _reach(reached)) for need, reached in zip(every[0], single, strict=True)),
        decides=every[0][decides].what,
    )


class _People:
    """One draw of a salt and of who gives what, extended as far as is asked."""

    def __init__(self, mix: Mix, settings: Settings, few_raters: bool, rng: random.Random) -> None:
        self._mix, self._settings, self._few, self._rng = mix, settings, few_raters, rng
        self._salt = rng.randbytes(32)
        names = [f"rater {number}" for number in range(mix.raters)]
        self._raters = [(name, rater_split(self._salt, name)) for name in names]
        self._acts: list[tuple[Split, Split, str]] = []  # of the rater and of the prompt group, and the group
        self._judged: list[tuple[int, EvidenceRow]] = []  # acts of calibration raters, with their number
        self._interactions: dict[str, Interaction] = {}
        self._known: dict[int, tuple[Need, ...]] = {}

    def first(self, place: int | None) -> int | None:
        """The smallest number of acts at which a need is met (all of them: None); None if it is not within the most."""

        def met(acts: int) -> bool:
            found = self.needs(acts)
            return all(need.met for need in (found if place is None else [found[place]]))

        high = _FIRST_ACTS
        while not met(high):
            if high >= MOST_ACTS:
                return None
            high = min(2 * high, MOST_ACTS)
        low = 0 if high == _FIRST_ACTS else high // 2
        while high - low > max(1, high * _CLOSE):
            middle = (low + high) // 2
            low, high = (low, middle) if met(middle) else (middle, high)
        return high

    def needs(self, acts: int) -> tuple[Need, ...]:
        """What the learner would say after so many acts."""
        if acts not in self._known:
            self._extend(acts)
            given = self._acts[:acts]
            groups = Counter({group: split for _, split, group in given}.values())
            train = sum(rater is Split.TRAIN and group is Split.TRAIN for rater, group, _ in given)
            gate = sum(rater is Split.GATE for rater, _, _ in given)
            data = FrozenDataSet(
                channel=_CHANNEL,
                as_of=_NOW,
                digest="",
                offsets=(),
                rows=tuple(row for number, row in self._judged if number < acts),
                interactions=self._interactions,
            )
            held_out = collect(data, Split.CALIBRATION, needs.PlainText(), self._settings.reward)
            self._known[acts] = (
                *needs.of_events(train, self._settings.learn),
                *needs.of_prompts(groups[Split.TRAIN], groups[Split.GATE], self._settings.gate),
                *needs.of_evidence(held_out, train, gate, self._settings.gate),
            )
        return self._known[acts]

    def _extend(self, acts: int) -> None:
        for number in range(len(self._acts), acts):
            who, split = self._rng.choice(self._raters)
            group = f"group {int(number / self._mix.per_prompt)}"
            kind, evidence, answers = self._act()
            in_group = group_split(self._salt, group, self._few)
            split = in_group if self._few else split
            self._acts.append((split, in_group, group))
            if split is not Split.CALIBRATION:
                continue
            name = f"{number:06d}"
            self._interactions[name] = dataclasses.replace(
                _ASKED, interaction_id=name, prompt_group=group, prompt_tokens=(number,), candidates=_ANSWERS[:answers]
            )
            row = EvidenceRow(
                interaction_id=name,
                feedback_id=name,
                index=0,
                kind=kind,
                evidence=evidence,
                who=who,
                accepted_at=_NOW,
                rater_split=split,
                group_split=in_group,
                prompt_group=group,
            )
            self._judged.append((number, row))

    def _act(self) -> tuple[FeedbackKind, Evidence, int]:
        draw = self._rng.random()
        if draw < self._mix.thumbs:
            return FeedbackKind.THUMBS, Binary(candidate="0", positive=self._rng.random() < UP), 1
        if draw < self._mix.thumbs + self._mix.choices:
            return FeedbackKind.CHOICE, Pair(first="0", second="1", outcome=PairOutcome.FIRST), 2
        order = tuple(str(place) for place in range(needs.RANKED))
        return FeedbackKind.RANKING, RankingEvidence(order=order), needs.RANKED


_ANSWERS = tuple(
    Candidate(
        candidate_id=str(place),
        release_version=0,
        release_digest="",
        tokens=(),
        logprobs_raw=(),
        logprobs_sampled=(),
        text=f"answer {place}",
        displayed_text=f"answer {place}",
        finish_reason=None,
        sampling=Sampling(),
        seed=0,
        width=0,
    )
    for place in range(needs.RANKED)
)
# What is asked differs by its tokens, so that two answers are equal only if they are the same one.
_ASKED = Interaction(
    interaction_id="",
    channel=_CHANNEL,
    purpose=Purpose.SERVE,
    action=Action.COMPLETION,
    messages=(),
    prompt_group="",
    candidates=(),
    completed_at=_NOW,
)


def _reach(acts: Sequence[int | None]) -> Reach:
    """Quantiles over the draws; one that never gets there is beyond all others."""
    ordered = sorted(acts, key=lambda each: MOST_ACTS + 1 if each is None else each)
    return Reach(half=ordered[len(ordered) // 2], safe=ordered[math.ceil(len(ordered) * SAFE) - 1])


# Words ----------------------------------------------------------------------------------------------


def as_text(found: Plan) -> str:
    """The plan for people."""
    per = found.mix.per_prompt
    lines = [
        f"{found.mix}; {per:g} piece{'s' * (per != 1)} of feedback per prompt",
        f"A first turn begins after {_acts(found.whole.half)} in half of {DRAWS} draws of who counts for what, after",
        f"{_acts(found.whole.safe)} in nine of ten. What comes last: {found.decides}.",
        "",
        f"  {'pieces of feedback until it is met':<52} {'half':>8} {'9 of 10':>8}",
        *(
            f"  {f'{need.want} {need.what}':<52} {_number(reach.half):>8} {_number(reach.safe):>8}"
            for need, reach in found.needs
            if need.want > 1
        ),
        *(["", _NEVER] if found.whole.safe is None else []),
        "",
        *_WHY,
    ]
    return "\n".join(lines)


_NEVER = (
    "Never: in some draws too few people are calibration raters, or each has given what one person counts for\n"
    f"({MOST_CONTRASTS_OF_ONE} contrasts between thumbs). More people, choices or rankings help."
)
_WHY = (
    "Why: raters and prompts are sorted by a salted hash, so that no model is judged by those it learnt from. Three in",
    "five raters and three in four prompts train, one in five raters judges, the gate asks one in four prompts. A",
    "comparison takes two answers to one prompt (a choice, a ranking), or thumbs of one rater that point both ways.",
    "A turn that begins may still end in a refusal: `plaudit status` then says what it takes.",
)


def _acts(count: int | None) -> str:
    return (
        f"more than {MOST_ACTS} pieces of feedback" if count is None else f"about {_number(count)} pieces of feedback"
    )


def _number(count: int | None) -> str:
    return "never" if count is None else f"{needs.about(count):,}"


TABLE = tuple(
    Mix(raters=raters, thumbs=thumbs, choices=choices, rankings=rankings)
    for thumbs, choices, rankings in ((1.0, 0.0, 0.0), (0.7, 0.2, 0.1), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    for raters in (40, 200)
)


def row(mix: Mix, settings: Settings) -> str:
    """A row of the table of docs/operate.md."""
    found = plan(mix, settings)
    return f"| {mix} | {_number(found.whole.half)} | {_number(found.whole.safe)} | {found.decides} |"


def table(settings: Settings) -> str:
    """The table of docs/operate.md."""
    lines = [
        "| who gives what | enough in half of the draws | in nine of ten | what is met last |",
        "|---|---|---|---|",
    ]
    return "\n".join([*lines, *(row(mix, settings) for mix in TABLE)]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table(Settings()))
