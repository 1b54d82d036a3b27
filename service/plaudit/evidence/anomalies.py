"""Raters who do not act like people who judge: pure, over the rows of a frozen data set.

Two anomalies, each with a bound that a person who judges does not reach by chance. A burst: more acts within a minute
than anybody can form an opinion in. One answer: many thumbs, or many comparisons, all the same way, although other
raters of the channel answer differently: with a share s of this answer among the others, n such answers in a row have
the probability s^n (their acts taken as independent), and the bound on it is divided by the number of raters looked at
(Bonferroni).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from plaudit.evidence.store import EvidenceRow
from plaudit.types import Binary, FeedbackKind, Pair, PairOutcome, is_rater

CHANCE = 1e-6  # of one honest rater in a channel
_MINUTE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Anomaly:
    """A rater, and what about them is not like a person who judges."""

    rater: str
    why: str


def anomalies(rows: Iterable[EvidenceRow], *, acts_per_minute: int, one_answer: int) -> list[Anomaly]:
    """Raters with an anomaly, in order; 0 turns a check off. Of each rater the first that is found."""
    named = [row for row in rows if is_rater(row.who)]
    found: dict[str, str] = {}
    for rater, why in (*_bursts(named, acts_per_minute), *_one_answer(named, one_answer)):
        found.setdefault(rater, why)
    return [Anomaly(rater, why) for rater, why in sorted(found.items())]


def _bursts(rows: Iterable[EvidenceRow], most: int) -> Iterator[tuple[str, str]]:
    if not most:
        return
    times: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    for row in rows:
        times[row.who][row.interaction_id, row.feedback_id] = row.accepted_at.timestamp()
    for rater, acts in times.items():
        ordered = sorted(acts.values())
        largest, first = 0, 0
        for last, moment in enumerate(ordered):
            while moment - ordered[first] >= _MINUTE_SECONDS:
                first += 1
            largest = max(largest, last - first + 1)
        if largest > most:
            yield rater, f"{largest} acts within a minute; {most} are the most"


def _one_answer(rows: Iterable[EvidenceRow], least: int) -> Iterator[tuple[str, str]]:
    if not least:
        return
    by_kind: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for row in rows:
        if row.kind is FeedbackKind.SIGNAL:
            continue  # what people do points one way: who skips never un-skips, and what was made again was kept
        match row.evidence:
            case Binary(positive=positive):
                by_kind["thumbs"][row.who]["up" if positive else "down"] += 1
            case Pair(outcome=outcome) if outcome is not PairOutcome.TIE:
                by_kind["comparisons"][row.who]["the first" if outcome is PairOutcome.FIRST else "the second"] += 1
    for kind, raters in by_kind.items():
        total: Counter[str] = Counter()
        for answers in raters.values():
            total.update(answers)
        for rater, answers in raters.items():
            if len(answers) != 1:
                continue
            ((answer, count),) = answers.items()
            others = total.total() - count
            if count < least or not others:
                continue
            # One more of each, so that a share that nobody else gave is not 0.
            share = (total[answer] - count + 1) / (others + 2)
            if count * math.log(share) < math.log(CHANCE / len(raters)):
                yield rater, f"{count} {kind}, all for {answer}; of those of others {share:.0%} are"
