"""Reads plaudit.rejected: what the join could not use, with the reason, from any event log, and sends it again.

Enters: an event log. Leaves: the newest rejections, each once. Memory is bounded by how many are asked for.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from plaudit.errors import LogUnavailable
from plaudit.eventlog import EventLog, Record, Topic
from plaudit.eventlog.codec import Rejected, decode

_WAIT_SECONDS = 15.0  # for a broker to hand out the partitions, and between two records
_POLL_SECONDS = 0.5
_RECORDS = 500


@dataclass(frozen=True, slots=True)
class Rejections:
    """Counts by reason of all that is in the log, and the newest ones, oldest first."""

    counts: dict[str, int]
    newest: tuple[Rejected, ...]


def named(rejected: Rejected) -> str:
    """The record that was rejected, as people name it: topic:partition:offset."""
    return f"{rejected.topic}:{rejected.partition}:{rejected.offset}"


def replay(log: EventLog, rejected: Sequence[Rejected]) -> int:
    """Appends the original records to their topics again, under their keys, each once; returns how many.

    The join reads them like any other: ids make it count once what it knows, and reject anew what is still wrong. Then
    the same bytes are rejected under two names, and go once all the same. What has no bytes here is left out.
    """
    wanted = {(each.topic, each.key, each.value) for each in rejected if each.value}
    for topic, key, value in sorted(wanted):
        log.append(Topic(topic), key.decode(errors="replace"), value)
    return len(wanted)


def read_rejected(log: EventLog, most: int, reason: str = "", name: str = "") -> Rejections:
    """The newest `most` rejections, of one reason or of one record by its name (`named`). Raises LogUnavailable.

    A rejection may have been published twice (docs/join.md): it is given once if both are among the newest.
    """
    # A group of its own: whoever works on rejections keeps their place.
    consumer = log.consumer((Topic.REJECTED,), f"plaudit-list-{uuid.uuid4().hex}", dict)
    counts: Counter[str] = Counter()
    newest: OrderedDict[tuple[str, int, int, str, int], Rejected] = OrderedDict()
    patience = time.monotonic() + _WAIT_SECONDS
    records: Sequence[Record] = ()
    try:
        while True:
            late = not records and time.monotonic() > patience
            if late and not consumer.assigned():
                raise LogUnavailable(f"no partition of {Topic.REJECTED} was handed out in {_WAIT_SECONDS:.0f} s; retry")
            # Asked before each poll, which waits at the end of the log. It is late if nothing came for long.
            if late or consumer.at_end():
                return Rejections(dict(sorted(counts.items())), tuple(newest.values()))
            if records := consumer.poll(_POLL_SECONDS, _RECORDS):
                patience = time.monotonic() + _WAIT_SECONDS
            for record in records:
                said = decode(record.value)
                if not isinstance(said, Rejected) or reason not in ("", said.reason):
                    continue
                if name not in ("", named(said)):
                    continue
                # A topic that was made anew has the same offsets again.
                identity = (said.topic, said.partition, said.offset, said.reason, hash(said.value))
                counts[said.reason] += identity not in newest
                newest[identity] = said
                if len(newest) > most:
                    newest.popitem(last=False)
    finally:
        consumer.close()
