"""`plaudit join reset`: an operator decides where reading goes on once places and log do not fit any more.

Enters: settings and the decision. Leaves: places at the beginning or the end of what the log holds now. Evidence is
not touched: what is read again is known by its ids and counts once.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import asdict, dataclass
from typing import Any, Literal

from plaudit.errors import LogUnavailable
from plaudit.eventlog import Place, Positions, Topic, open_log
from plaudit.evidence import places
from plaudit.evidence.join import TOPICS
from plaudit.settings import Settings
from plaudit.store.database import Database

_WAIT_SECONDS = 30.0  # for the brokers to hand out the partitions
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Moved:
    """A partition's place before and after; None: from the earliest record on."""

    topic: str
    partition: int
    before: Place | None
    after: Place | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        was = "never read" if self.before is None else _said(self.before)
        becomes = "the earliest record" if self.after is None else _said(self.after)
        return f"{self.topic}[{self.partition}]: {was} -> {becomes}"


def _said(place: Place) -> str:
    return f"offset {place.next} of {place.topic_id or 'an unknown identity'}"


def reset(settings: Settings, start: Literal["earliest", "latest"]) -> list[Moved]:
    """Sets every partition's place; raises LogUnavailable or StoreUnavailable and then changes nothing."""
    ends: Positions = _ends(settings) if start == "latest" else {}
    database = Database(settings.store_url)
    try:
        with database.writing() as connection:
            known = places.reset(connection, TOPICS, ends)
    finally:
        database.close()
    everywhere = sorted(known.keys() | ends.keys())
    return [
        Moved(topic.value, partition, known.get((topic, partition)), ends.get((topic, partition)))
        for topic, partition in everywhere
    ]


def _ends(settings: Settings) -> dict[tuple[Topic, int], Place]:
    """The end of every partition, in the topic's present life."""
    log = open_log(settings)
    try:
        # A group of its own: it is given every partition, and the join keeps its own.
        consumer = log.consumer(TOPICS, f"plaudit-reset-{uuid.uuid4().hex}", dict)
        try:
            deadline = time.monotonic() + _WAIT_SECONDS
            while not consumer.assigned():
                if time.monotonic() > deadline:
                    raise LogUnavailable(f"no partition was handed out in {_WAIT_SECONDS:.0f} s; retry")
                consumer.poll(_POLL_SECONDS, 1)
            ids = consumer.topic_ids()
            return {at: Place(end, ids[at[0]]) for at, end in consumer.end_positions().items()}
        finally:
            consumer.close()
    finally:
        log.close()
