"""What people name as reasons, counted by release: where a channel's answers fall short, and whether that changes.

Enters: the evidence store and a channel. Leaves: for each release and each kind of act how many acts there are and how
many of them name each reason. Counts joined feedback, so that what was retracted or replaced is left out. Reasons are
declared words, so that no text of people is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Table, and_, select

from plaudit.eventlog.codec import Retraction, decode
from plaudit.evidence.ingest import interaction_of
from plaudit.evidence.tables import FeedbackRow, InteractionRow, Status
from plaudit.store.database import Database
from plaudit.types import KIND_OF_ACT, Act, Channel, Choice, Feedback, Interaction, Ranking, Thumbs

ROWS_AT_ONCE = 500  # in memory, each with its interaction

_INTERACTIONS: Table = InteractionRow.metadata.tables["interactions"]
_FEEDBACK: Table = FeedbackRow.metadata.tables["feedback"]


@dataclass(frozen=True, slots=True)
class Named:
    """Acts of one kind ("thumb down", "rating") on one release's answers, and how many of them name each reason."""

    release: int
    said: str
    acts: int
    reasons: Mapping[str, int] = field(default_factory=dict)


def reasons_named(database: Database, channel: Channel) -> list[Named]:
    """Counts of a channel, by release and kind of act; an act may name several reasons."""
    query = (
        select(_FEEDBACK.c.value, _INTERACTIONS.c.record)
        .join(_INTERACTIONS, _INTERACTIONS.c.interaction_id == _FEEDBACK.c.interaction_id)
        .where(
            and_(
                _FEEDBACK.c.domain == channel.domain,
                _FEEDBACK.c.tenant == channel.tenant,
                _FEEDBACK.c.status == Status.JOINED,
            )
        )
        .execution_options(yield_per=ROWS_AT_ONCE)
    )
    acts: Counter[tuple[int, str]] = Counter()
    named: dict[tuple[int, str], Counter[str]] = {}
    with database.reading() as connection:
        for value, record in connection.execute(query):
            said = decode(value)
            if isinstance(said, Retraction):
                continue
            assert isinstance(said, Feedback), "the join stores nothing else here"
            key = (_release_of(said.act, interaction_of(record)), _words(said.act))
            acts[key] += 1
            named.setdefault(key, Counter()).update(set(said.reasons))
    return [
        Named(release, words, count, dict(named[release, words].most_common()))
        for (release, words), count in sorted(acts.items())
    ]


def _words(act: Act) -> str:
    return f"thumb {'up' if act.up else 'down'}" if isinstance(act, Thumbs) else KIND_OF_ACT[type(act)].value


def _release_of(act: Act, interaction: Interaction) -> int:
    """The release that made what the act is about; of a choice and a ranking, what was liked best."""
    match act:
        case Choice():
            about: str | None = act.chosen_id
        case Ranking():
            about = act.candidate_ids[0]
        case _:
            about = act.candidate_id
    versions = {each.candidate_id: each.release_version for each in interaction.candidates}
    return versions.get(about or "", next(iter(versions.values()), 0))
