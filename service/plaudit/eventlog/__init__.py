"""The event log: where interactions and feedback become durable (stages 2 and 3), and where the join reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plaudit.eventlog.protocol import Consumer, EventLog, Place, Positions, Record, Topic

if TYPE_CHECKING:
    from plaudit.settings import Settings

__all__ = ["Consumer", "EventLog", "Place", "Positions", "Record", "Topic", "open_log"]

LOG_FILE = "log.sqlite"


def open_log(settings: Settings) -> EventLog:
    """The log that the settings name. Raises Misconfigured or, where no broker answers, LogUnavailable."""
    if settings.log.kind == "kafka":
        from plaudit.eventlog.kafka import KafkaEventLog  # the client is an extra, and embedded logs do without it

        return KafkaEventLog(settings.log.kafka)
    from plaudit.eventlog.sqlite import SqliteEventLog

    return SqliteEventLog(settings.data_dir / LOG_FILE)
