"""The event log: where interactions and feedback become durable (stages 2 and 3), and where the join reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from plaudit.eventlog.protocol import Consumer, EventLog, Place, Positions, Record, Topic

if TYPE_CHECKING:
    from plaudit.settings import Settings

__all__ = ["Consumer", "EventLog", "Place", "Positions", "Record", "Topic", "open_log", "open_serving_log"]

LOG_FILE = "log.sqlite"


def open_serving_log(
    settings: Settings,
    *,
    kept: Callable[[Topic, int], None] = lambda topic, records: None,
    drained: Callable[[Topic, int], None] = lambda topic, records: None,
) -> EventLog:
    """The log of a process that answers callers: before Kafka stands the outbox, so it opens while no broker answers.

    `kept` and `drained` are told what goes into the outbox and out of it.
    """
    if settings.log.kind != "kafka" or not settings.log.outbox.max_mb:
        return open_log(settings)
    from plaudit.eventlog.kafka import KafkaEventLog
    from plaudit.eventlog.outbox import OutboxLog

    return OutboxLog(
        settings.data_dir,
        lambda: KafkaEventLog(settings.log.kafka),
        settings.log.outbox,
        kept=kept,
        drained=drained,
    )


def open_log(settings: Settings) -> EventLog:
    """The log that the settings name. Raises Misconfigured or, if no broker answers, LogUnavailable."""
    if settings.log.kind == "kafka":
        from plaudit.eventlog.kafka import KafkaEventLog  # the client is an extra, and embedded logs do without it

        return with_person_keys(settings, KafkaEventLog(settings.log.kafka))
    from plaudit.eventlog.sqlite import SqliteEventLog

    return with_person_keys(settings, SqliteEventLog(settings.data_dir / LOG_FILE))


def with_person_keys(settings: Settings, log: EventLog) -> EventLog:
    """The log with records that only keys of people open, if the settings want it. Raises StoreUnavailable."""
    if not settings.privacy.person_keys:
        return log
    from plaudit.eventlog.sealing import SealingLog
    from plaudit.privacy.keys import PersonKeys
    from plaudit.store.database import Database

    if isinstance(log, SealingLog):
        return log
    try:
        return SealingLog(log, PersonKeys(Database(settings.store_url)))
    except BaseException:
        log.close()  # whoever waits for the store opens another one each time
        raise
