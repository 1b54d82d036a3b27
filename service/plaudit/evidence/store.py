"""The evidence store: what the join has made of the log, read as frozen data sets, prompts and counts.

The join is its only writer (`ingest`, within the join's transaction). Everything in it can be rebuilt from the log.
A data set is frozen in one repeatable-read transaction: its rows and its offsets belong together.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sqlalchemy import ColumnElement, Connection, and_, exists, func, select

from plaudit.eventlog import Positions, Topic
from plaudit.evidence import counts, ingest, places
from plaudit.evidence.counts import Counted, Tally
from plaudit.evidence.quarantine import out_of_quarantine
from plaudit.evidence.rows import evidence_from_bytes
from plaudit.evidence.splits import Split, group_split, rater_split
from plaudit.evidence.tables import (
    EvidenceTable,
    FeedbackRow,
    InteractionRow,
    OffsetRow,
    Status,
    to_micros,
)
from plaudit.store.database import Database
from plaudit.types import Channel, Evidence, FeedbackKind, Interaction, Message, Option, Passage, Purpose


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceRow:
    """One piece of evidence, with what decides its use and its weight."""

    interaction_id: str
    feedback_id: str
    index: int
    kind: FeedbackKind
    evidence: Evidence
    who: str
    accepted_at: dt.datetime
    rater_split: Split
    group_split: Split
    prompt_group: str


@dataclass(frozen=True, slots=True, order=True)
class OffsetRange:
    """Records of a partition that were read: from `first`, up to but not including `next`, in one life of the topic."""

    topic: Topic
    partition: int
    first: int
    next: int
    topic_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenDataSet:
    """All evidence of a channel at one moment. Rows are in order of (interaction id, feedback id, index).

    `as_of` is the time that decay counts ages from; it leaves no row out. The digest covers the rows without their
    splits, which follow from the salt. `left_out`: rows that are not here because people judged by another version of
    the domain's rules. `quarantined`: rows that are not here because their raters were in quarantine at `as_of`.
    `prompts`: those of that moment, if they were asked for.
    """

    channel: Channel
    as_of: dt.datetime
    digest: str
    offsets: tuple[OffsetRange, ...]
    rows: tuple[EvidenceRow, ...]
    interactions: Mapping[str, Interaction]
    left_out: int = 0
    quarantined: int = 0
    prompts: tuple[PromptRow, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Rows by kind of feedback."""
        return dict(sorted(Counter(row.kind.value for row in self.rows).items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRow:
    """A prompt group's newest interaction; `options` of a choice in the request's order, empty for completions."""

    group: str
    interaction_id: str
    messages: tuple[Message, ...]
    passages: tuple[Passage, ...]
    prompt_tokens: tuple[int, ...]
    policy_version: str
    options: tuple[Option, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinCounts:
    """What the join has read of a channel.

    `acknowledged` counts acts, each body under an id once: it is the sum of joined, waiting, rejected, superseded,
    retracted and withheld. Retractions are counted apart. `no_consent`: interactions that nothing may be learnt from,
    which `interactions` does not count; acts on them are `withheld`.
    """

    interactions: int = 0
    acknowledged: int = 0
    joined: int = 0
    waiting: int = 0
    rejected: int = 0
    superseded: int = 0
    retracted: int = 0
    withheld: int = 0
    no_consent: int = 0
    retractions: int = 0
    retractions_rejected: int = 0


class EvidenceStore:
    """The evidence of every channel in one SQL database."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)

    def close(self) -> None:
        """Closes every connection."""
        self.database.close()

    def positions(self) -> Positions:
        """Where reading goes on in every partition that was ever read."""
        with self.database.reading() as connection:
            return places.read(connection)

    def lost_to_retention(self) -> int:
        """Records that retention deleted before the join read them."""
        with self.database.reading() as connection:
            return places.lost(connection)

    def channels(self) -> list[Channel]:
        """Channels with an interaction for SERVE or EXPLORE that something may be learnt from, in order."""
        query = select(InteractionRow.domain, InteractionRow.tenant).where(_LEARNED_FROM).distinct()
        with self.database.reading() as connection:
            return sorted(Channel(domain, tenant) for domain, tenant in connection.execute(query))

    def freeze(
        self,
        channel: Channel,
        salt: bytes,
        as_of: dt.datetime | None = None,
        *,
        few_raters: bool = False,
        policy_version: str | None = None,
        only: Split | None = None,
        with_prompts: bool = False,
    ) -> FrozenDataSet:
        """All evidence of a channel, with the offsets it was made of; `as_of` defaults to the present.

        few_raters (a domain's declaration): prompt groups alone are split, and a row's rater split is its group's.
        policy_version (a domain's declaration): only evidence on interactions of this version; None: on all.
        only: rows of one split of raters, and the digest is of these; None: all.
        with_prompts: also the prompts of the same moment, as `prompts` gives them.
        """
        which = and_(EvidenceTable.domain == channel.domain, EvidenceTable.tenant == channel.tenant)
        if only is not None:
            counts.fill_units(self.database, channel, salt)
            which = and_(which, counts.in_split(only, few_raters))
        as_of = as_of or dt.datetime.now(dt.UTC)
        with self.database.reading() as connection:
            offsets = tuple(sorted(read_offsets(connection)))
            query = select(EvidenceTable.payload).where(which, out_of_quarantine(channel, as_of))
            payloads = connection.execute(query).scalars().all()
            every = connection.execute(select(func.count()).select_from(EvidenceTable).where(which)).scalar_one()
            interactions = {
                each.interaction_id: each
                for each in _interactions_with_evidence(connection, channel, which).values()
                if policy_version in (None, each.policy_version)
            }
            prompts = _prompts(connection, channel) if with_prompts else []
        # Sorted here: databases collate text in orders of their own.
        rows = [(evidence_from_bytes(payload), payload) for payload in payloads]
        stored = sorted(
            (pair for pair in rows if pair[0].interaction_id in interactions), key=lambda pair: pair[0].order
        )
        frozen = []
        for row, _ in stored:
            group = group_split(salt, row.prompt_group, few_raters)
            frozen.append(
                EvidenceRow(
                    interaction_id=row.interaction_id,
                    feedback_id=row.feedback_id,
                    index=row.index,
                    kind=row.kind,
                    evidence=row.evidence,
                    who=row.who,
                    accepted_at=row.accepted_at,
                    rater_split=group if few_raters else rater_split(salt, row.who),
                    group_split=group,
                    prompt_group=row.prompt_group,
                )
            )
        return FrozenDataSet(
            channel=channel,
            as_of=as_of,
            digest=digest_of(payload for _, payload in stored),
            offsets=offsets,
            rows=tuple(frozen),
            interactions=MappingProxyType(interactions),
            left_out=len(rows) - len(stored),
            quarantined=every - len(rows),
            prompts=tuple(prompts),
        )

    def prompts(self, channel: Channel) -> list[PromptRow]:
        """The newest interaction of every prompt group that was asked for SERVE or EXPLORE, in order of the group."""
        with self.database.reading() as connection:
            return _prompts(connection, channel)

    def counts(self, channel: Channel) -> JoinCounts:
        """What the join has read of a channel, and what became of it. EVALUATE interactions are not counted."""
        interactions = (
            select(InteractionRow.may_train, func.count())
            .where(_of_channel(channel), _NOT_EVALUATED)
            .group_by(InteractionRow.may_train)
        )
        feedback = (
            select(FeedbackRow.retraction, FeedbackRow.status, func.count())
            .where(FeedbackRow.domain == channel.domain, FeedbackRow.tenant == channel.tenant)
            .group_by(FeedbackRow.retraction, FeedbackRow.status)
        )
        with self.database.reading() as connection:
            consented = {bool(may_train): count for may_train, count in connection.execute(interactions)}
            found = connection.execute(feedback).all()
        acts = Counter({status: count for retraction, status, count in found if not retraction})
        retractions = Counter({status: count for retraction, status, count in found if retraction})
        return JoinCounts(
            interactions=consented.get(True, 0),
            no_consent=consented.get(False, 0),
            acknowledged=acts.total(),
            joined=acts[Status.JOINED],
            waiting=acts[Status.WAITING],
            rejected=acts[Status.REJECTED],
            superseded=acts[Status.SUPERSEDED],
            retracted=acts[Status.RETRACTED],
            withheld=acts[Status.WITHHELD],
            retractions=retractions.total(),
            retractions_rejected=retractions[Status.REJECTED],
        )

    def waiting(self) -> dict[Channel, int]:
        """Acts that wait for their interaction, of every channel that has some."""
        query = (
            select(FeedbackRow.domain, FeedbackRow.tenant, func.count())
            .where(FeedbackRow.status == Status.WAITING.value, ~FeedbackRow.retraction)
            .group_by(FeedbackRow.domain, FeedbackRow.tenant)
        )
        with self.database.reading() as connection:
            return {Channel(domain, tenant): acts for domain, tenant, acts in connection.execute(query)}

    def count_new(
        self,
        channel: Channel,
        salt: bytes,
        since: dt.datetime | None = None,
        *,
        few_raters: bool = False,
        policy_version: str | None = None,
    ) -> int:
        """Training events: acts by train raters on train groups, accepted after `since` (None: ever).

        few_raters, policy_version: as in `freeze`, so that what is counted is what a turn would use. One count in SQL;
        no evidence is read but what came since the last count (`counts`).
        """
        counts.fill_units(self.database, channel, salt)
        counted = Counted(channel=channel, since=since, few_raters=few_raters, policy_version=policy_version)
        with self.database.reading() as connection:
            return counts.count_new(connection, counted)

    def tally(
        self,
        channel: Channel,
        salt: bytes,
        since: dt.datetime | None = None,
        *,
        few_raters: bool = False,
        policy_version: str | None = None,
    ) -> tuple[Tally, ...]:
        """Acts and raters by kind and splits, counted in SQL; what is counted as in `count_new`."""
        counts.fill_units(self.database, channel, salt)
        counted = Counted(channel=channel, since=since, few_raters=few_raters, policy_version=policy_version)
        with self.database.reading() as connection:
            return counts.tally(connection, counted)

    def count_groups(self, channel: Channel, salt: bytes, *, few_raters: bool = False) -> Counter[Split]:
        """Prompt groups that were asked for SERVE or EXPLORE, by split; no interaction is decoded."""
        query = select(InteractionRow.prompt_group).where(_of_channel(channel), _LEARNED_FROM).distinct()
        with self.database.reading() as connection:
            groups = connection.execute(query).scalars().all()
        return Counter(group_split(salt, group, few_raters) for group in groups)

    def count_answered(self, channel: Channel, since: dt.datetime) -> int:
        """Interactions for SERVE or EXPLORE that were completed at this time or later."""
        query = (
            select(func.count())
            .select_from(InteractionRow)
            .where(_of_channel(channel), _LEARNED_FROM, InteractionRow.completed_at >= to_micros(since))
            .where(InteractionRow.purpose != Purpose.IMPORTED.value)
        )
        with self.database.reading() as connection:
            return int(connection.execute(query).scalar_one())

    def interaction(self, interaction_id: str) -> Interaction | None:
        """An interaction for SERVE or EXPLORE; None if there is none of that id."""
        query = select(InteractionRow.__table__).where(InteractionRow.interaction_id == interaction_id, _LEARNED_FROM)
        with self.database.reading() as connection:
            heads = connection.execute(query).mappings().all()
            return ingest.load_interactions(heads).get(interaction_id)


def digest_of(payloads: Iterable[bytes]) -> str:
    """SHA-256, in hex, of evidence rows in order; each is preceded by its length, so that no two lists run together."""
    digest = hashlib.sha256()
    for payload in payloads:
        digest.update(len(payload).to_bytes(8, "big"))
        digest.update(payload)
    return digest.hexdigest()


_NOT_EVALUATED = InteractionRow.purpose != Purpose.EVALUATE.value
_LEARNED_FROM = and_(_NOT_EVALUATED, InteractionRow.may_train)


def _of_channel(channel: Channel) -> ColumnElement[bool]:
    return and_(InteractionRow.domain == channel.domain, InteractionRow.tenant == channel.tenant)


def read_offsets(connection: Connection) -> list[OffsetRange]:
    """How far every partition was read."""
    columns = (OffsetRow.topic, OffsetRow.partition, OffsetRow.first, OffsetRow.next, OffsetRow.topic_id)
    return [
        OffsetRange(Topic(topic), partition, first, following, topic_id)
        for topic, partition, first, following, topic_id in connection.execute(select(*columns))
    ]


def _prompts(connection: Connection, channel: Channel) -> list[PromptRow]:
    age = func.row_number().over(
        partition_by=InteractionRow.prompt_group,
        order_by=(InteractionRow.completed_at.desc(), InteractionRow.interaction_id.desc()),
    )
    ranked = (
        select(
            InteractionRow.record,
            age.label("age"),
        )
        .where(_of_channel(channel), _LEARNED_FROM)
        .subquery()
    )
    query = select(ranked.c.record).where(ranked.c.age == 1)
    found = connection.execute(query).scalars().all()
    prompts = [
        PromptRow(
            group=each.prompt_group,
            interaction_id=each.interaction_id,
            messages=each.messages,
            passages=each.passages,
            prompt_tokens=each.prompt_tokens,
            policy_version=each.policy_version,
            options=each.options,
        )
        for each in map(ingest.interaction_of, found)
    ]
    return sorted(prompts, key=lambda prompt: prompt.group)


def _interactions_with_evidence(
    connection: Connection, channel: Channel, which: ColumnElement[bool]
) -> dict[str, Interaction]:
    has_evidence = exists().where(EvidenceTable.interaction_id == InteractionRow.interaction_id, which)
    query = select(InteractionRow.__table__).where(_of_channel(channel), has_evidence)
    return ingest.load_interactions(connection.execute(query).mappings().all())
