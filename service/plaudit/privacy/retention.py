"""Retention: what is older than a channel's `privacy.retention_days` is deleted.

Enters: settings, the store, the embedded log's file and the registry. Leaves: all three without what is too old, and
counts by what was deleted. With a channel's rows goes what turns on this disk kept of its texts. A step is bounded
(STEP_ROWS of each kind), so that the join, which runs it, is never held up for long; the next step goes on where this
one ended. Kafka's topics have a retention of their own.

The embedded log loses only what the join has read, so that nothing is skipped unread. Age is the log's own time of a
record, of an interaction when it was completed, of feedback without an interaction when it was accepted.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from plaudit.errors import Undecodable
from plaudit.eventlog import LOG_FILE
from plaudit.eventlog.codec import Rejected, decode
from plaudit.eventlog.deleting import EmbeddedRecords
from plaudit.eventlog.protocol import Positions, Record, Topic
from plaudit.evidence import places, removal
from plaudit.evidence.tables import from_micros, to_micros
from plaudit.release.moves import ReleaseRow
from plaudit.release.registry import PROBE_ANSWERS, Registry
from plaudit.settings import Settings
from plaudit.store import kept
from plaudit.types import Channel

STEP_ROWS = 2_000
TOPICS = (Topic.INTERACTIONS, Topic.FEEDBACK, Topic.REJECTED)
LOG_RECORDS, PROBE_FILES, REJECTIONS = "log_records", "probe_answers", "rejections"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step found too old, by what it is, and whether it ended before it had looked at all there is."""

    found: Counter[str]
    more: bool = False


@dataclass(slots=True)
class _Cursor:
    """Behind what the next step looks."""

    offsets: dict[Topic, int] = field(default_factory=dict)
    rejection: str = ""


class Retention:
    """Deletes what is too old, step by step; with `dry_run` it only counts. For one thread."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        *,
        dry_run: bool = False,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._database = registry.database
        self._embedded = None if settings.log.kind == "kafka" else EmbeddedRecords(settings.data_dir / LOG_FILE)
        self._dry_run = dry_run
        self._now = now
        self._cursor = _Cursor()
        self._answers_gone: set[tuple[str, int]] = set()
        self._shortest = settings.shortest_retention_days

    def run(self) -> Counter[str]:
        """Looks at all there is; what was deleted, or would be."""
        found: Counter[str] = Counter()
        while True:
            step = self.step()
            found += step.found
            if not step.more:
                return found

    def step(self) -> Step:
        """Deletes what is too old among the next STEP_ROWS of each kind. Raises StoreUnavailable, LogUnavailable."""
        if not self._shortest:
            return Step(Counter())
        with self._database.reading() as connection:
            read = places.read(connection)
        steps = [self._store_step(), self._rejections_step(), self._answers_step()]
        steps += [self._log_step(topic, read) for topic in TOPICS if self._embedded is not None]
        found = sum((each.found for each in steps), Counter[str]())
        if found and not self._dry_run:
            _log.info("retention.deleted", **dict(sorted(found.items())))
        return Step(found, any(each.more for each in steps))

    def is_old(self, channel: Channel | None, moment: dt.datetime) -> bool:
        """Whether what a channel keeps from that moment has to go; what belongs to no channel goes with the first."""
        days = self._shortest if channel is None else self._settings.for_channel(channel).privacy.retention_days
        return bool(days) and moment < self._now() - dt.timedelta(days=days)

    def _store_step(self) -> Step:
        found: Counter[str] = Counter()
        more = False
        with self._database.reading() as connection:
            channels = removal.channels(connection)
        for channel in channels:
            days = self._settings.for_channel(channel).privacy.retention_days
            if not days:
                continue
            before = to_micros(self._now() - dt.timedelta(days=days))
            if self._dry_run:
                with self._database.reading() as connection:
                    found += removal.count_older(connection, channel, before)
                continue
            with self._database.writing() as connection:
                removed = removal.remove_older(connection, channel, before, STEP_ROWS)
                if removed:  # before the rows are gone: whoever dies here has deleted nothing
                    kept.forget(self._settings.data_dir, channel)
            if removed:  # and afterwards: a turn that began in between has read them
                kept.forget(self._settings.data_dir, channel)
            found += removed
            more = more or removed["interactions"] >= STEP_ROWS
        return Step(found, more)

    def _rejections_step(self) -> Step:
        with self._database.reading() as connection:
            rows = removal.rejections_behind(connection, self._cursor.rejection, STEP_ROWS)
        old = [row.identity for row in rows if self.is_old(channel_in(row.value), from_micros(row.rejected_at))]
        if old and not self._dry_run:
            with self._database.writing() as connection:
                removal.remove_rejections(connection, old)
        more = len(rows) == STEP_ROWS
        self._cursor.rejection = rows[-1].identity if more else ""
        return Step(+Counter({REJECTIONS: len(old)}), more)

    def _answers_step(self) -> Step:
        """Answers to a domain's probes that failed, kept beside releases: the only texts in the registry."""
        old = [
            row
            for state in self._registry.states()
            for row in self._registry.releases(state.channel)
            if self.is_old(row.channel, row.created_at) and _name(row) not in self._answers_gone
        ]
        count = 0
        for row in old:
            if self._dry_run:
                count += self._registry.kept_beside(row.channel, row.version, PROBE_ANSWERS) is not None
            else:
                count += self._registry.remove_beside(row.channel, row.version, PROBE_ANSWERS)
                self._answers_gone.add(_name(row))
        return Step(+Counter({PROBE_FILES: count}))

    def _log_step(self, topic: Topic, read: Positions) -> Step:
        assert self._embedded is not None
        records = self._embedded.read(topic, self._cursor.offsets.get(topic, -1), STEP_ROWS)
        looked = [each for each in records if self._may_go(each, read)]
        old = [each.offset for each in looked if self.is_old(channel_in(each.value), each.timestamp)]
        if not self._dry_run:
            self._embedded.delete(topic, old)
        more = len(looked) == STEP_ROWS
        self._cursor.offsets[topic] = looked[-1].offset if more else -1
        return Step(+Counter({LOG_RECORDS: len(old)}), more)

    def _may_go(self, record: Record, read: Positions) -> bool:
        """Old enough for the shortest retention, and read by the join if the join reads its topic."""
        place = read.get((record.topic, record.partition))
        unread = record.topic is not Topic.REJECTED and (place is None or record.offset >= place.next)
        return not unread and self.is_old(None, record.timestamp)


def channel_in(value: bytes) -> Channel | None:
    """The channel that a record of any topic is of; None if that cannot be read."""
    try:
        said = decode(value)
    except Undecodable:
        return None
    return channel_in(said.value) if isinstance(said, Rejected) else said.channel


def _name(row: ReleaseRow) -> tuple[str, int]:
    return str(row.channel), row.version
