"""Evidence of a channel as lines of preferences, a page of interactions at a time.

Enters: the evidence store. Leaves: lines in the columns of `formats`, conversational, in order of (interaction id,
feedback id). What quarantine, splits and withdrawals leave out of a turn is left out here too. Holds texts of people.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from sqlalchemy import Connection, Table, and_, select

from plaudit.evidence import ingest
from plaudit.evidence.quarantine import out_of_quarantine
from plaudit.evidence.rows import StoredEvidence, evidence_from_bytes
from plaudit.evidence.splits import Split, group_split, rater_split
from plaudit.evidence.store import EvidenceStore
from plaudit.evidence.tables import EvidenceTable, InteractionRow, where_in
from plaudit.exchange.formats import Format, Judged, write
from plaudit.types import Binary, Channel, Demo, Interaction, Pair, PairOutcome, RankingEvidence

PAGE = 200  # interactions in memory at once
_INTERACTIONS: Table = InteractionRow.metadata.tables["interactions"]
_EVIDENCE: Table = EvidenceTable.metadata.tables["evidence"]


@dataclass(slots=True, kw_only=True)
class Exported:
    """How many lines were written, and how many pieces of evidence were not, by why."""

    lines: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """What is exported. `split`: rows that a turn would use for this alone; None: all. `people`: also who judged."""

    store: EvidenceStore
    channel: Channel
    salt: bytes
    wanted: Format
    few_raters: bool = False
    policy_version: str | None = None
    split: Split | None = None
    people: bool = False

    def run(self, counts: Exported) -> Iterator[dict[str, Any]]:
        """The lines; `counts` tells how far it came."""
        after = ""
        while True:
            with self.store.database.reading() as connection:
                page = self._page(connection, after)
                if not page:
                    return
                after = page[-1]
                rows = self._rows(connection, page)
                heads = where_in(connection, _INTERACTIONS, "interaction_id", page)
                interactions = ingest.load_interactions(heads)
            for row in sorted(rows, key=lambda each: each.order):
                yield from self._lines(row, interactions[row.interaction_id], counts)

    def _page(self, connection: Connection, after: str) -> list[str]:
        mine = and_(_EVIDENCE.c.domain == self.channel.domain, _EVIDENCE.c.tenant == self.channel.tenant)
        query = select(_EVIDENCE.c.interaction_id).where(mine, _EVIDENCE.c.interaction_id > after).distinct()
        return list(connection.execute(query.order_by(_EVIDENCE.c.interaction_id).limit(PAGE)).scalars())

    def _rows(self, connection: Connection, page: list[str]) -> list[StoredEvidence]:
        query = select(_EVIDENCE.c.payload).where(
            _EVIDENCE.c.interaction_id.in_(page), out_of_quarantine(self.channel, None)
        )
        return [evidence_from_bytes(payload) for payload in connection.execute(query).scalars()]

    def _lines(self, row: StoredEvidence, interaction: Interaction, counts: Exported) -> Iterator[dict[str, Any]]:
        if self.policy_version not in (None, interaction.policy_version):
            counts.left_out["of another policy version"] += 1
            return
        if self.split is not None and not self._of_split(row):
            counts.left_out["of another split"] += 1
            return
        found = list(_judged(row, interaction, self.wanted))
        if not found:
            counts.left_out[f"{type(row.evidence).__name__} gives no {self.wanted} line"] += 1
        for judged in found:
            counts.lines += 1
            line = write(judged)
            if self.wanted is Format.RANKED:
                answers = [line.pop(name) for name in ("chosen", "rejected") if name in line]
                line |= {"completions": answers} if answers else {}
            yield line | ({"rater": row.who} if self.people else {})

    def _of_split(self, row: StoredEvidence) -> bool:
        group = group_split(self.salt, row.prompt_group, self.few_raters)
        if self.few_raters:
            return group is self.split
        rater = rater_split(self.salt, row.who)
        # As in a turn: the reward model learns from train raters on train groups.
        return rater is self.split and (self.split is not Split.TRAIN or group is Split.TRAIN)


def _judged(row: StoredEvidence, interaction: Interaction, wanted: Format) -> Iterator[Judged]:
    """What a piece of evidence says in this format; nothing if it says nothing there."""
    texts = {each.candidate_id: each.displayed_text for each in interaction.candidates}
    for order, good in _orders(row, texts, wanted):
        if len(set(order)) == len(order):  # of two equal texts nothing is preferred
            yield Judged(prompt=interaction.messages, completions=order, good=good)


def _orders(
    row: StoredEvidence, texts: dict[str, str], wanted: Format
) -> Iterator[tuple[tuple[str, ...], bool | None]]:
    match row.evidence, wanted:
        case Binary(candidate=candidate, positive=positive, source=""), Format.KTO:
            yield (texts[candidate],), positive
        case Pair(outcome=PairOutcome.TIE), _:
            return
        case Pair(first=first, second=second, outcome=outcome), Format.DPO:
            better, worse = (first, second) if outcome is PairOutcome.FIRST else (second, first)
            yield (texts[better], texts[worse]), None
        case Demo(candidate=candidate, text=text), Format.DPO:
            yield (text, texts[candidate]), None
        case RankingEvidence(order=order, observed=observed), Format.DPO:
            known = len(order) if observed is None else observed
            for place, behind in combinations(range(len(order)), 2):
                if place < known:  # behind the observed places nothing is in order
                    yield (texts[order[place]], texts[order[behind]]), None
        case RankingEvidence(order=order, observed=None), Format.RANKED:
            yield tuple(texts[each] for each in order), None
